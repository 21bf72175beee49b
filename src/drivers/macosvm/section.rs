//! The section `[drivers.macosvm]`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::platform::settings::{SettingType, section};

/// How guests are connected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MacosvmNetworkKind {
    #[default]
    Nat,
    Bridged,
}

impl SettingType for MacosvmNetworkKind {
    const KIND: &'static str = "`nat` or `bridged`";
}

/// The machine identity of guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IdentityChoice {
    /// The template's.
    #[default]
    Keep,
    /// A new one for each guest.
    Regenerate,
}

impl SettingType for IdentityChoice {
    const KIND: &'static str = "`keep` or `regenerate`";
}

section! {
    /// macosvm: macOS guests on Apple Silicon.
    pub struct MacosvmSection {
        /// Use this driver.
        enabled: bool = false;
        /// The program: a path, or a name looked up in `PATH`, in Homebrew's directories too.
        binary: Option<PathBuf> = None, shown as "`macosvm`";
        /// How guests are connected. `nat`: macOS's own NAT. `bridged`: as machines of the local network; macosvm needs
        /// an entitlement for it (`com.apple.vm.networking`) that Apple grants on request. Neither filters anything, so
        /// the only network mode is `host`.
        network: MacosvmNetworkKind = MacosvmNetworkKind::Nat;
        /// Interface of the host that `bridged` guests are connected to, such as `en0`.
        bridged_interface: Option<String> = None;
        /// The host's address as guests see it.
        gateway: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 64, 1));
        /// Port of the guests' SSH server.
        ssh_port: u16 = 22, in 1..=65_535;
        /// The host's file of DHCP leases, in which the addresses of `nat` guests are found.
        lease_file: PathBuf = "/var/db/dhcpd_leases".into();
        /// Looks for a `nat` guest that has no lease, by connecting to the SSH port of each address in the `gateway`'s
        /// network (/24). An address is used only if the host's ARP table has it for this guest. Starts 20 seconds after
        /// the guest and lasts three minutes.
        nat_scan: bool = false;
        /// Machine identity of guests, from which their serial number derives. `keep`: the template's, also for several
        /// guests at once. `regenerate`: a new one for each guest. Whether a guest boots with one depends on its macOS:
        /// boot one vm of each template before you rely on it.
        identity: IdentityChoice = IdentityChoice::Keep;
        /// Size of the guests' display: `1920x1080`.
        display: Option<String> = None, shown as "the template's";
        /// Copy a template's disk if it cannot be cloned.
        copy_without_clones: bool = false;
    }
}
