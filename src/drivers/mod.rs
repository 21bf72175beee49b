//! The contract of all hypervisor drivers.
//!
//! A driver turns verbs into effects on one hypervisor and knows nothing else: not the store, not the guest's
//! content, not other drivers. It needs nothing in memory to manage an instance: everything is in its arguments, on
//! disk, or in the hypervisor, so a new driver can serve an instance that was started last week. Waiting and retrying
//! belong to `reconcile`.
//!
//! Every verb is idempotent, because Mayfly may end right before or after any of them: a repeated `create` or `start`
//! gives the same instance, and for `stop` and `destroy` absence is success. After the record that a guest
//! was started, `start` never boots its clone again, because the guest would repeat its work.

use std::{path::PathBuf, time::Duration};

use async_trait::async_trait;

use crate::domain::{
    Arch, Code, GuestOs, InstanceName, NetworkPolicy, NetworkSupport,
    endpoint::Endpoint,
    event::GoneCause,
    template::{DiskFormat, TemplateFiles},
};

pub mod arp;
pub mod cloud_hypervisor;
pub mod dhcp_leases;
mod failure;
pub mod fake;
mod file_clone;
mod foreground;
pub mod gateway;
mod guest_address;
pub mod inspector;
mod instances;
mod last_resort;
mod lock;
pub mod macosvm;
mod nat_scan;
pub mod overlay;
mod probe_dir;
pub mod process;
pub mod qemu;
mod qemu_words;
pub mod record;
pub mod registry;
mod run_output;
mod section;
mod stage_dir;
pub mod tart;
mod template_lock;
pub mod ways;

pub use section::{FakeSection, SlotsSection};

/// What a driver supports with its settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub guests: Vec<GuestOs>,
    pub graceful_stop: bool,
    pub console: bool,
    /// Supports a NoCloud seed volume.
    pub seed: bool,
    /// Has a channel to an agent in the guest.
    pub agent: bool,
    /// The network modes that it can enforce, and the one that it uses by default.
    pub network: NetworkSupport,
}

/// What works on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverProbe {
    /// For example `QEMU emulator version 7.2.22`.
    pub version: String,
    pub arch: Arch,
    /// `kvm`, `hvf`, `tcg`, `vz`, …
    pub accelerator: String,
    /// Why a better accelerator is not used: cause, consequence and remedy.
    pub note: Option<String>,
    /// What the host lacks to confine the hypervisor itself.
    pub unconfined: Option<String>,
}

impl DriverProbe {
    /// One sentence: which accelerator runs guests, and why a better one is not used.
    pub fn sentence(&self) -> String {
        let note = self.note.as_deref().map(|note| format!(": {note}")).unwrap_or_default();
        format!("guests run under {}{note}", self.accelerator)
    }
}

/// A NoCloud seed: the volume with the label `cidata`. Contains secrets: written with mode 0600, never logged.
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

/// What the guest may reach, and how it reaches the guest API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestNetwork {
    pub policy: NetworkPolicy,
    /// Unix socket of the guest API on this host.
    pub guest_api: PathBuf,
}

/// Everything that defines an instance. A pure function of the vm's record and the configuration, so it can be
/// computed again.
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

/// The state of an instance, as the driver just observed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// Nothing is left of it: no process, no disk.
    Absent,
    /// It exists and does not run.
    Stopped,
    /// The hypervisor runs. `ssh` is the address of the guest's SSH port, and `agent` the socket of the agent in the
    /// guest, as soon as they are known; the guest may not answer there yet.
    Running {
        ssh: Option<Endpoint>,
        agent: Option<PathBuf>,
        /// Why it is not known whether there is an address. Concerns only those who need one.
        ssh_unseen: Option<(Code, String)>,
    },
    /// The hypervisor runs, but no longer runs its guest.
    Halted { cause: GoneCause },
    /// It exists in a state that no verb of the driver leaves behind.
    Broken { detail: String },
}

/// One instance on the host, as `list` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The hypervisor's name for it. `InstanceName::parse` recognises Mayfly's.
    pub name: String,
    /// Mayfly's own: in this Mayfly's directory and with its prefix. Never true on a guess.
    pub ours: bool,
    pub running: bool,
    pub os: GuestOs,
    pub cpus: u32,
    pub memory_mib: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A retry may help.
    Retry,
    /// This instance is lost; a fresh clone may run.
    Instance,
    /// A retry does not help this vm.
    Permanent,
    /// The host cannot run it now, for a reason outside the vm (limit exceeded, hypervisor missing or broken).
    Host,
}

/// The failure of a verb. The tail is for the log only.
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

    /// Whether the driver works here. May start a guest to find out, so the caller caches the result; `fresh` ignores
    /// the result of an earlier probe on disk.
    async fn probe(&self, fresh: bool) -> Result<DriverProbe>;

    /// Clones the template's disk for this instance, copy-on-write; the template is not changed.
    async fn create(&self, spec: &InstanceSpec) -> Result<()>;

    /// Starts the hypervisor, which outlives this process. Returns once the hypervisor has accepted the guest's
    /// configuration. An instance is started once: one that was started and has ended is left alone, and `ended`
    /// returns the cause.
    async fn start(&self, spec: &InstanceSpec) -> Result<()>;

    /// Ends the guest: requests a power-down and waits up to `grace` (zero: without a request), then ends the
    /// hypervisor, then kills it. Returns when it no longer runs.
    async fn stop(&self, name: &InstanceName, grace: Duration) -> Result<()>;

    /// Removes everything of a stopped instance and confirms it: a later `inspect` returns `Absent`. Stops a running
    /// instance first.
    async fn destroy(&self, name: &InstanceName) -> Result<()>;

    async fn inspect(&self, name: &InstanceName) -> Result<Observation>;

    /// Resolves with the cause when a running instance ends, or when its hypervisor has stopped the guest and stays
    /// alive. Resolves at once if it does not run: with the recorded cause of its latest end, or with `Unknown`.
    /// Fails if the record shows that it never ran, because some hypervisors notice only after their start that the
    /// host is at its limit.
    async fn ended(&self, name: &InstanceName) -> Result<GoneCause>;

    /// The guest of this instance was reached: it called, or a program in it answered.
    async fn reached(&self, _name: &InstanceName) {}

    /// Resumes a guest that its hypervisor paused because the host's disk was full (`ended` returned `HostDiskFull`).
    /// Fails while there is too little space.
    async fn resume(&self, name: &InstanceName) -> Result<()> {
        let summary = format!("guests of the driver {} are not resumed: {name} stays paused", self.name());
        Err(DriverError::new(ErrorKind::Permanent, Code::DriverUnsupported, summary))
    }

    /// All instances on this host: Mayfly's, each looked up separately, and foreign ones as far as the hypervisor
    /// shows them. An error of one does not hide others; an instance that cannot be inspected is listed as running.
    async fn list(&self) -> Result<Vec<Listed>>;

    /// The file with the guest's console output, if the driver writes one. It may not exist yet.
    fn console_log(&self, name: &InstanceName) -> Option<PathBuf>;

    /// The files with the hypervisor's own output. They may not exist.
    fn hypervisor_logs(&self, _name: &InstanceName) -> Vec<PathBuf> {
        Vec::new()
    }
}
