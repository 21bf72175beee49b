//! One contract for every hypervisor.
//!
//! A driver turns verbs into effects on one hypervisor and knows nothing else: not the store, not the guest's content, not
//! other drivers. It keeps no memory: everything it needs is in its arguments, on disk, or in the hypervisor, so a driver made
//! a moment ago serves an instance started last week. Waiting and retrying belong to `reconcile`.
//!
//! Every verb is idempotent, because Mayfly may die right before or right after any of them: `create` and `start` asked
//! twice give the same instance, and for `stop` and `destroy` absence is success. No guest is ever booted twice from one clone:
//! what it did the first time would be done again.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;

use crate::domain::{
    Arch, Code, GuestOs, InstanceName,
    endpoint::Endpoint,
    event::GoneCause,
    template::{DiskFormat, TemplateFiles},
};

mod failure;
pub mod fake;
pub mod inspector;
mod keep;
mod last_resort;
mod lock;
pub mod process;
pub mod qemu;
pub mod record;
pub mod registry;
mod section;
pub mod tart;

pub use section::{FakeSection, SlotsSection};

/// What a driver can do at all, whatever the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub guests: Vec<GuestOs>,
    pub graceful_stop: bool,
    pub console: bool,
    /// Takes a NoCloud seed volume.
    pub seed: bool,
    /// Has a channel of its own to an agent in the guest.
    pub agent: bool,
}

/// Whether it works here, and with what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverProbe {
    /// For example `QEMU emulator version 7.2.22`.
    pub version: String,
    pub arch: Arch,
    /// `kvm`, `hvf`, `tcg`, `vz`, …
    pub accelerator: String,
    /// Why the better accelerator is not used, when it is not: cause, consequence and remedy.
    pub note: Option<String>,
}

impl DriverProbe {
    /// Which accelerator runs guests, and why not a better one, in one sentence.
    pub fn sentence(&self) -> String {
        let note = self.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
        format!("guests run under {}{note}", self.accelerator)
    }
}

/// A NoCloud seed: the files of a volume labelled `cidata`. Holds secrets: written with mode 0600, never logged.
#[derive(Clone)]
pub struct Seed {
    /// The volume's bytes (vfat).
    pub volume: Vec<u8>,
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seed({} bytes)", self.volume.len())
    }
}

/// How the guest reaches the guest API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    /// `true`: the guest reaches the guest API and nothing else. `false`: the internet and the host's network too.
    pub isolated: bool,
    /// Unix socket of the guest API on this host.
    pub guest_api: PathBuf,
    /// Program that relays its standard input and output to that socket: `argv[0]` and what precedes the socket's path.
    pub relay: Vec<String>,
}

/// Everything that makes an instance. A pure function of the vm's record and the configuration, so it can be made again.
#[derive(Clone, Debug)]
pub struct InstanceSpec {
    pub name: InstanceName,
    pub os: GuestOs,
    pub arch: Arch,
    pub cpus: u32,
    pub memory_mib: u32,
    pub disk_format: DiskFormat,
    pub files: TemplateFiles,
    pub cmdline: Option<String>,
    pub seed: Option<Seed>,
    pub network: GuestNetwork,
}

/// What the driver just saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nothing is left of it: no process, no disk.
    Absent,
    /// It exists and does not run.
    Stopped,
    /// The hypervisor runs. `ssh` is where the guest's SSH port is reached, and `agent` the socket that leads to the agent in
    /// the guest, each as soon as it is known; the guest may not answer there yet.
    Running { ssh: Option<Endpoint>, agent: Option<PathBuf> },
    /// The hypervisor lives and does not run its guest any more.
    Halted { cause: GoneCause },
    /// It exists in a way that no verb of ours leaves behind.
    Broken { detail: String },
}

/// One instance on the host, as `list` sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The hypervisor's name for it. `InstanceName::parse` tells ours from foreign ones.
    pub name: String,
    /// Ours: it lives where this Mayfly keeps its instances and carries our prefix. Never true on a guess.
    pub ours: bool,
    pub running: bool,
    pub os: GuestOs,
    pub cpus: u32,
    pub memory_mib: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// Trying the same again may help.
    Retry,
    /// It will not, for this vm.
    Permanent,
    /// The host cannot run it now and the vm is not at fault (limit exceeded, hypervisor missing or broken).
    Host,
}

/// Why a verb failed. The tail is for the log only.
#[derive(Debug, thiserror::Error)]
#[error("{summary}")]
pub struct DriverError {
    pub kind: ErrorKind,
    pub code: Code,
    /// One line, without secrets.
    pub summary: String,
    /// The end of the program's output.
    pub tail: Option<String>,
    #[source]
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl DriverError {
    pub fn new(kind: ErrorKind, code: Code, summary: impl Into<String>) -> Self {
        Self { kind, code, summary: summary.into(), tail: None, source: None }
    }

    pub fn tail(mut self, tail: impl Into<String>) -> Self {
        self.tail = Some(tail.into());
        self
    }

    pub fn source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

pub type Result<T> = std::result::Result<T, DriverError>;

#[async_trait]
pub trait Driver: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    fn capabilities(&self) -> Capabilities;

    /// Usable here? May start a guest to find out, so the answer is kept by the caller; `fresh` ignores what an earlier probe
    /// left on disk.
    async fn probe(&self, fresh: bool) -> Result<DriverProbe>;

    /// Clones the template's disk for this instance. Copy-on-write; the template stays untouched.
    async fn create(&self, spec: &InstanceSpec) -> Result<()>;

    /// Starts the hypervisor. It outlives this process. Returns once the hypervisor accepted the guest's configuration. An
    /// instance is started once: one that was started before and has ended is left as it is, and `ended` tells how.
    async fn start(&self, spec: &InstanceSpec) -> Result<()>;

    /// Ends the guest: asks it to power down and waits up to `grace` (zero: does not ask), then ends the hypervisor, then kills
    /// it. Returns when it no longer runs.
    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()>;

    /// Removes everything of a stopped instance, and confirms it: a later `inspect` says `Absent`. Stops it first if it runs.
    async fn destroy(&self, name: &InstanceName) -> Result<()>;

    async fn inspect(&self, name: &InstanceName) -> Result<Observation>;

    /// Resolves when a running instance ends, or when its hypervisor has stopped the guest and lives on, with the reason. At
    /// once when it does not run: with the reason of its latest end if the hypervisor left word of that, else with `Unknown`.
    /// Fails when that word says that it never ran, and why: some hypervisors find out only after they were started that the
    /// host is at its limit.
    async fn ended(&self, name: &InstanceName) -> Result<GoneCause>;

    /// The guest of this instance was reached: it called, or something in it answered.
    async fn reached(&self, _name: &InstanceName) {}

    /// Lets a guest go on that its hypervisor paused because the host's disk was full (`ended` said `HostDiskFull`). Fails
    /// while there is too little room for it.
    async fn resume(&self, name: &InstanceName) -> Result<()> {
        let summary = format!("guests of the driver {} are not resumed: {name} stays paused", self.name());
        Err(DriverError::new(ErrorKind::Permanent, Code::DriverUnsupported, summary))
    }

    /// Every instance on this host: ours, each looked up by itself, and foreign ones as far as the hypervisor shows them. What is
    /// wrong with one hides no other; one that cannot be looked at is listed as running.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// Where the guest's console output is, if the driver keeps it. The file may not exist yet.
    fn console_log(&self, name: &InstanceName) -> Option<PathBuf>;

    /// Where the hypervisor's own output is, for each instance. The files may not exist.
    fn hypervisor_logs(&self, _name: &InstanceName) -> Vec<PathBuf> {
        Vec::new()
    }
}
