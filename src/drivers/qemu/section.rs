//! The section `[drivers.qemu]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    domain::{NetworkMode, NetworkSupport},
    platform::settings::{SettingType, section},
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum AcceleratorChoice {
    /// The best one that is proven to run a guest here.
    #[default]
    Auto,
    Kvm,
    Hvf,
    /// Emulation: slow, and works everywhere.
    Tcg,
}

impl AcceleratorChoice {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl SettingType for AcceleratorChoice {
    const KIND: &'static str = "`auto`, `kvm`, `hvf` or `tcg`";
}

section! {
    /// QEMU: with KVM on Linux, with HVF on macOS, in emulation anywhere.
    pub struct QemuSection {
        /// Use this driver.
        enabled: bool = true;
        /// The hypervisor: a path, or a name looked up in `PATH`.
        binary: Option<PathBuf> = None, shown as "`qemu-system-<host's architecture>`";
        /// The disk tool: a path, or a name looked up in `PATH`.
        qemu_img: Option<PathBuf> = None, shown as "`qemu-img`";
        /// How guests are run. `auto` uses KVM (on macOS HVF) if a test guest passes under it and is clearly faster
        /// than in emulation; otherwise `tcg`, which is emulation. The other values are used without a test.
        accelerator: AcceleratorChoice = AcceleratorChoice::Auto;
        /// The older form of the default network mode of all vms: `true` means `isolated`, and `false` means `host`. The
        /// `network` of a template, a pool or a request precedes it.
        isolated: Option<bool> = None, shown as "by the kind of runner: `isolated` or `internet`";
        /// With `accelerator = "auto"`: how long the first guest under an accelerator may give no sign of life (on its
        /// console or by a call to the guest API) before guests are emulated instead, in seconds (5 to 600).
        first_guest_seconds: u32 = 45, in 5..=600;
        /// A guest that writes while the host's disk is full is paused, and continues when there is space. A guest with
        /// a runner is given up after this many seconds (1 to 3600); CI systems also give up a silent runner after some
        /// minutes.
        disk_full_seconds: u32 = 300, in 1..=3600;
        /// Size of the log of a guest's console at which it is cut, in bytes (65536 to 1099511627776). The guest decides
        /// how much it writes. The log may be larger by what is written in a fifth of a second.
        console_log_bytes: u64 = 64 << 20, in 64 << 10..=1 << 40;
    }
}

impl QemuSection {
    /// Every mode can be enforced.
    pub fn network_support(&self) -> NetworkSupport {
        let usual = self.isolated.map(|isolated| if isolated { NetworkMode::Isolated } else { NetworkMode::Host });
        NetworkSupport::default().by_default(usual)
    }
}
