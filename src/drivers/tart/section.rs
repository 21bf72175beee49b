//! The section `[drivers.tart]`.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use crate::{
    domain::Arch,
    platform::settings::{SettingType, section},
};

/// How guests are connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NetworkKind {
    Nat,
    Softnet,
    Bridged,
}

impl SettingType for NetworkKind {
    const KIND: &'static str = "`nat`, `softnet` or `bridged`";
}

/// Where a guest's address is looked up. When the first two know nothing for long, the guest agent is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolver {
    /// The host's lease file. It knows nothing of guests behind a bridge, so for those the ARP table is read instead.
    #[default]
    Dhcp,
    Arp,
    Agent,
}

impl SettingType for Resolver {
    const KIND: &'static str = "`dhcp`, `arp` or `agent`";
}

impl SettingType for Arch {
    const KIND: &'static str = "`aarch64` or `x86_64`";
}

section! {
    /// Tart: macOS and Linux guests on Apple Silicon.
    pub struct TartSection {
        /// Use this driver.
        enabled: bool = cfg!(target_os = "macos"), shown as "`true` on macOS";
        /// The program: a path, or a name looked up in `PATH`, in Homebrew's directories too.
        binary: Option<PathBuf> = None, shown as "`tart`";
        /// Directory in which Tart keeps its VMs. Put it on the volume of the data directory: a clone to another volume
        /// would be a full copy, which is refused unless `copy_across_volumes` is set.
        home: Option<PathBuf> = None, shown as "`TART_HOME`, else `~/.tart`";
        /// Processor architecture of the guests.
        arch: Option<Arch> = None, shown as "the host's";
        /// How guests are connected. `nat`: macOS's own NAT. `softnet`: Tart's filter, which keeps guests away from the
        /// local network. `bridged`: as machines of the local network. The network modes `isolated` and `internet` need
        /// `softnet`; with it, guests in the mode `host` are connected by `nat`.
        network: NetworkKind = NetworkKind::Nat;
        /// Networks that guests behind `softnet` may reach in the mode `internet` besides the internet (CIDR).
        softnet_allow: Vec<String> = Vec::new();
        /// Networks that guests behind `softnet` may not reach in the mode `internet` (CIDR). `0.0.0.0/0`, while
        /// `softnet_allow` has nothing but `@host`, is the older form of the default mode `isolated`.
        softnet_block: Vec<String> = Vec::new();
        /// Interfaces of the host that `bridged` guests are connected to.
        bridged_interfaces: Vec<String> = Vec::new();
        /// The host's address as guests see it.
        gateway: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 64, 1));
        /// Port of the guests' SSH server.
        ssh_port: u16 = 22, in 1..=65_535;
        /// How a guest's address is found: `dhcp` in the host's lease file; `arp` in the host's ARP table, needed for
        /// `bridged`; `agent` from the agent in the guest.
        resolver: Resolver = Resolver::Dhcp;
        /// Looks for a guest that `resolver` and the agent do not find, by connecting to the SSH port of each address in
        /// the `gateway`'s network (/24). An address is used only if the host's ARP table has it for this guest.
        /// Starts 20 seconds after the guest and lasts three minutes; not for `bridged`.
        nat_scan: bool = false;
        /// The host's file of DHCP leases.
        lease_file: PathBuf = "/var/db/dhcpd_leases".into();
        /// Directories of the host that are shared with guests, as in `tart run --dir`: `name:/path:ro`.
        dirs: Vec<String> = Vec::new();
        /// Size of the guests' display, as in `tart set --display`: `1920x1080`.
        display: Option<String> = None, shown as "the template's";
        /// How the guests' disk is written, as in `tart run --root-disk-opts`. The disks of guests are deleted
        /// afterwards, so writes need not reach the host's disk.
        root_disk_opts: String = "sync=none,caching=cached".to_owned();
        /// Enables Rosetta for Linux guests, under this tag.
        rosetta: Option<String> = None;
        /// Enables nested virtualisation in Linux guests (M3 and later).
        nested: bool = false;
        /// Starts macOS guests in a way that allows suspending them: without audio, entropy and USB devices.
        suspendable: bool = false;
        /// Copy a template's disk if it cannot be cloned because Tart's directory is on another volume.
        copy_across_volumes: bool = false;
    }
}
