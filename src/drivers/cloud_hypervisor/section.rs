//! The section `[drivers.cloud_hypervisor]`.

use std::path::PathBuf;

use crate::{domain::NetworkSupport, platform::settings::section};

section! {
    /// Cloud Hypervisor: Linux guests under KVM. Templates name this driver as `cloud-hypervisor`.
    pub struct CloudHypervisorSection {
        /// Use this driver.
        enabled: bool = false;
        /// The hypervisor: a path, or a name looked up in `PATH`.
        binary: Option<PathBuf> = None, shown as "`cloud-hypervisor`";
        /// The disk tool: a path, or a name looked up in `PATH`.
        qemu_img: Option<PathBuf> = None, shown as "`qemu-img`";
        /// Size of the log of a guest's console at which it is cut, in bytes (65536 to 1099511627776). The guest decides
        /// how much it writes. The log may be larger by what is written in a fifth of a second.
        console_log_bytes: u64 = 64 << 20, in 64 << 10..=1 << 40;
    }
}

impl CloudHypervisorSection {
    /// Every mode can be enforced.
    pub fn network_support(&self) -> NetworkSupport {
        NetworkSupport::default()
    }
}
