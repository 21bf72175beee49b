//! What a test tells the double, in `double.json` beside the link under which it is started. Every key is optional, an
//! unknown one is refused (exit 70).
//!
//! ```json
//! {
//!   "version": "0.2-3",             the answer of --version; decides which options are known
//!   "capabilities": "macOS guest, …",
//!   "entitlements": ["com.apple.security.virtualization"],
//!   "lease_file": "/path",          default: dhcpd_leases beside this file
//!   "limit": 2,                     macOS guests that the "kernel" lets run at once, over this directory
//!   "foreign_kernel_slots": 0,      of these, how many other programs hold
//!   "guest": "inert",               see below
//!   "lease": {},                    what becomes of every guest's lease
//!   "rules": [ {"id": "1", "vm": "mayfly-", "times": 1, "then": { … }} ]
//! }
//! ```
//!
//! `guest` gives life to a VM:
//! - `"inert"`: nothing runs. It powers off when there is a file `double/off-<pid>`, as a real guest does when a program in it
//!   requests it; no signal and no command on the host can request it.
//! - `{"qemu": {"kernel": …, "initramfs": …, "cmdline": …}}`: a real Linux guest on the first disk, which simulates a macOS one.
//!
//! `rules` bend the VMs whose description's path contains `vm`. A rule applies `times` times (without it: always), counted
//! by its `id`. All rules that apply are merged, later ones win. What may follow in `then`: see [`Bend`].
//!
//! Leases: a guest gets one when it has started, from 127.64.0.0/10 (all of it is loopback on Linux).

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Control {
    pub version: String,
    pub capabilities: String,
    pub entitlements: Vec<String>,
    pub lease_file: Option<PathBuf>,
    pub limit: u32,
    pub foreign_kernel_slots: u32,
    pub guest: Guest,
    pub lease: Lease,
    pub rules: Vec<Rule>,
}

impl Default for Control {
    fn default() -> Control {
        Control {
            version: "0.2-3".to_owned(),
            capabilities: "macOS guest, vol, vol:automount, net:unix:mtu, usb".to_owned(),
            entitlements: vec!["com.apple.security.virtualization".to_owned()],
            lease_file: None,
            limit: 2,
            foreign_kernel_slots: 0,
            guest: Guest::Inert,
            lease: Lease::default(),
            rules: Vec::new(),
        }
    }
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guest {
    Inert,
    Qemu(Box<Qemu>),
}

/// The guest of the project's own tests has a fixed address, so the defaults suit that.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Qemu {
    pub binary: PathBuf,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub cmdline: Option<String>,
    /// Of the address in the lease. A port under 1024 needs the right to use it.
    pub ssh_port: u16,
    /// Where the guest is on its network, and the network itself (`-netdev user,…`). The guest always finds the host's
    /// loopback at 192.168.64.1, as it finds the host on a Mac.
    pub address: String,
    pub network: String,
}

impl Default for Qemu {
    fn default() -> Qemu {
        Qemu {
            binary: format!("qemu-system-{}", std::env::consts::ARCH).into(),
            kernel: None,
            initramfs: None,
            cmdline: None,
            ssh_port: 22,
            address: "10.0.2.15".to_owned(),
            // Everything is in one network, so that a guest that is set to 10.0.2.15 behind 10.0.2.2 finds 192.168.64.1 in
            // it: QEMU answers for its "dns" as a gateway would, and takes only its "host" for our loopback.
            network: "net=0.0.0.0/0.0.0.0,host=192.168.64.1,dns=10.0.2.2,dhcpstart=192.168.64.2,ipv6=off".to_owned(),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Lease {
    /// No lease at all.
    pub none: bool,
    /// How late after the start of the guest it comes.
    pub after_ms: u64,
    /// The guest identifies itself by a DUID and not by its MAC.
    pub duid: bool,
    /// This address and no other, whoever has it already.
    pub ip: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    pub id: String,
    #[serde(default)]
    pub vm: String,
    pub times: Option<u32>,
    pub then: Map<String, Value>,
}

/// How a VM is bent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Bend {
    /// The kernel refuses the guest although there are slots: they have leaked.
    pub limit: bool,
    /// The framework refuses the start with this error.
    pub start_error: Option<String>,
    /// Thrown while the VM is made.
    pub exception: Option<String>,
    /// How long the framework takes to start the guest.
    pub start_after_ms: u64,
    /// The guest or the framework fails, this long after the start.
    pub crash_after_ms: Option<u64>,
    pub power_off_after_ms: Option<u64>,
    /// The process does not react to SIGTERM: the framework hangs.
    pub ignores_term: bool,
    pub lease: Option<Lease>,
}

impl Control {
    pub fn read(home: &Path) -> Result<Control, String> {
        let path = home.join("double.json");
        let wrong = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let control: Control = match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|e| wrong(&e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Control::default(),
            Err(e) => return Err(wrong(&e)),
        };
        for rule in &control.rules {
            serde_json::from_value::<Bend>(Value::Object(rule.then.clone())).map_err(|e| wrong(&e))?;
        }
        Ok(control)
    }

    pub fn lease_file(&self, home: &Path) -> PathBuf {
        self.lease_file.clone().unwrap_or_else(|| home.join("dhcpd_leases"))
    }

    /// Whether the version that is simulated is at least this.
    pub fn at_least(&self, major: u32, minor: u32, patch: u32) -> bool {
        let mut numbers = self.version.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
        let mut next = || numbers.next().unwrap_or_default();
        (next(), next(), next()) >= (major, minor, patch)
    }

    /// What the rules make of the VM with this description.
    pub fn bend(&self, home: &Path, description: &str) -> Result<Bend, String> {
        let mut merged = Map::new();
        for rule in self.rules.iter().filter(|rule| description.contains(&rule.vm)) {
            if rule.times.is_none_or(|times| (0..times).any(|n| take(home, &rule.id, n))) {
                merged.extend(rule.then.clone());
            }
        }
        serde_json::from_value(Value::Object(merged)).map_err(|e| e.to_string())
    }
}

/// Each use of a counted rule is a file that only one process can create.
fn take(home: &Path, id: &str, n: u32) -> bool {
    File::options().write(true).create_new(true).open(state(home).join(format!("rule-{id}-{n}"))).is_ok()
}

/// What the double keeps for itself.
pub fn state(home: &Path) -> PathBuf {
    let dir = home.join("double");
    let _ = std::fs::create_dir_all(&dir);
    dir
}
