//! What a test tells the double, in `$TART_HOME/double.json`. Every key is optional, an unknown one is refused (exit 70).
//!
//! ```json
//! {
//!   "version": "2.32.1",            the answer of --version; decides the shape of `list` and which flags are known
//!   "arch": "amd64",                of the host; default: this machine's. A VM's config must say the same to run
//!   "lease_file": "/path",          default $TART_HOME/dhcpd_leases
//!   "arp_file": "/path",            what `arp -an` prints; without it there is nothing in the table
//!   "limit": 2,                     macOS guests that the "kernel" lets run at once, over this TART_HOME
//!   "foreign_kernel_slots": 0,      of these, how many other programs hold
//!   "leak_slots": false,            every macOS guest that starts keeps its slot for good, until double/leaked is removed
//!   "guest": "inert",               see below
//!   "agent": "none",                who answers on control.sock: "none", "host" (runs commands on this machine), "guest"
//!   "agent_patience_ms": 10000,     how long `exec` tries when nobody answers
//!   "control_socket": true,         false simulates a host before macOS 14
//!   "asif": true, "nested": true, "softnet": true, "bridges": ["en0"],     what the host can do
//!   "lease": {},                    what becomes of every guest's lease
//!   "rules": [ {"command": "run", "vm": "mayfly-*", "times": 1, "then": { … }} ]
//! }
//! ```
//!
//! `guest` gives life to a VM:
//! - `"inert"`: nothing runs. Asked to power off (SIGUSR2), a Linux guest does; a macOS guest shows a dialog to nobody.
//! - `"deaf"`: as above and never powers off.
//! - `{"qemu": {"kernel": …, "initramfs": …, "cmdline": …, "user": "runner", "key": "/path"}}`: a real Linux guest on the
//!   VM's `disk.img`, see [`Qemu`]. It may play a macOS one: what `os` in the config says counts for everything else.
//!
//!   Its shares, extra disks and network options are checked and then not there.
//!
//! `rules` bend one command for VMs whose name matches (`*` is any run of characters). `command` is a subcommand, `*` for all,
//! `run` by default. A rule applies `times` times (without it: always) and is counted by its `id`, or by its own text: to
//! use the same rule afresh, give it another `id`. With `skip` it does not apply the first so many times. All rules that apply are merged, later ones win. What may follow in
//! `then`, apart from `guest`, `agent` and `lease`, is in [`crate::rules::Then`].
//!
//! Leases: a guest gets one when it has started, from 127.64.0.0/10 (all of it is loopback on Linux). See [`Lease`].

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{failure::Failure, home::Home, rules::Then};

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    pub version: String,
    pub arch: String,
    pub lease_file: Option<PathBuf>,
    pub arp_file: Option<PathBuf>,
    pub limit: u32,
    pub foreign_kernel_slots: u32,
    pub leak_slots: bool,
    pub guest: Guest,
    pub agent: Option<Agent>,
    pub agent_patience_ms: u64,
    pub control_socket: bool,
    pub asif: bool,
    pub nested: bool,
    pub softnet: bool,
    pub bridges: Vec<String>,
    pub lease: Lease,
    pub rules: Vec<Rule>,
}

impl Default for Control {
    fn default() -> Control {
        Control {
            version: "2.32.1".to_owned(),
            arch: if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }.to_owned(),
            lease_file: None,
            arp_file: None,
            limit: 2,
            foreign_kernel_slots: 0,
            leak_slots: false,
            guest: Guest::Inert,
            agent: None,
            agent_patience_ms: 10_000,
            control_socket: true,
            asif: true,
            nested: true,
            softnet: true,
            bridges: vec!["en0".to_owned()],
            lease: Lease::default(),
            rules: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    Inert,
    Deaf,
    Qemu(Box<Qemu>),
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Agent {
    /// As in a guest without the agent: connections are closed at once.
    None,
    /// Commands run on this machine.
    Host,
    /// Commands run in the QEMU guest, over SSH. The default there.
    Guest,
}

/// The guest of the project's own tests has a fixed address, so the defaults suit that; `network` is for another.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qemu {
    /// Default: the QEMU for the arch in the VM's config, from PATH.
    pub binary: Option<PathBuf>,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub cmdline: Option<String>,
    /// Of the address in the lease. A port under 1024 needs the right to use it.
    pub ssh_port: u16,
    /// Instead of what the VM's config says. Emulated guests need little, and templates may ask for much.
    pub memory_mib: Option<u64>,
    pub cpus: Option<u64>,
    pub user: String,
    pub key: Option<PathBuf>,
    /// Where the guest is on its network, and the network itself (`-netdev user,…`). The guest always finds the host's
    /// loopback at 192.168.64.1, as it finds the host on a Mac.
    pub address: String,
    pub network: String,
}

impl Default for Qemu {
    fn default() -> Qemu {
        Qemu {
            binary: None,
            kernel: None,
            initramfs: None,
            cmdline: None,
            ssh_port: 22,
            memory_mib: None,
            cpus: None,
            user: "admin".to_owned(),
            key: None,
            address: "10.0.2.15".to_owned(),
            // Everything is in one network, so that a guest that is set to 10.0.2.15 behind 10.0.2.2 finds 192.168.64.1 in
            // it: QEMU answers for its "dns" as a gateway would, and takes only its "host" for our loopback.
            network: "net=0.0.0.0/0.0.0.0,host=192.168.64.1,dns=10.0.2.2,dhcpstart=192.168.64.2,ipv6=off".to_owned(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// No lease at all.
    pub none: bool,
    /// How late after the start of the guest it comes.
    pub after_ms: u64,
    /// How long it is good for.
    pub seconds: i64,
    /// The guest identifies itself by a DUID and not by its MAC.
    pub duid: bool,
    /// This address and no other, whoever has it already.
    pub ip: Option<String>,
    /// Left by the past: entries for the VM's MAC that are in the file before the guest starts.
    pub stale: Vec<Stale>,
}

impl Default for Lease {
    fn default() -> Lease {
        Lease { none: false, after_ms: 0, seconds: 86_400, duid: false, ip: None, stale: Vec::new() }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stale {
    pub ip: String,
    /// Negative: expired.
    pub expires_in_seconds: i64,
}

#[derive(Clone, Debug, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    #[serde(default)]
    pub id: Option<String>,
    #[serde(default = "run")]
    pub command: String,
    #[serde(default = "any")]
    pub vm: String,
    /// The first so many times that it would apply, it does not.
    #[serde(default)]
    pub skip: u32,
    #[serde(default)]
    pub times: Option<u32>,
    pub then: Map<String, Value>,
}

fn run() -> String {
    "run".to_owned()
}

fn any() -> String {
    "*".to_owned()
}

impl Control {
    pub fn read(home: &Home) -> Result<Control, Failure> {
        let path = home.root.join("double.json");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Control::default()),
            Err(e) => return Err(Failure::Double(format!("{}: {e}", path.display()))),
        };
        let wrong = |e: serde_json::Error| Failure::Double(format!("{}: {e}", path.display()));
        let control: Control = serde_json::from_str(&text).map_err(wrong)?;
        for rule in &control.rules {
            Then::from_map(rule.then.clone()).map_err(wrong)?;
        }
        Ok(control)
    }

    pub fn lease_file(&self, home: &Home) -> PathBuf {
        self.lease_file.clone().unwrap_or_else(|| home.root.join("dhcpd_leases"))
    }

    /// Whether the version simulated is at least this. A snapshot is newer than all.
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        let mut parts = self.version.split('.').map(str::parse::<u32>);
        match (parts.next(), parts.next()) {
            (Some(Ok(a)), Some(Ok(b))) => (a, b) >= (major, minor),
            _ => true,
        }
    }
}
