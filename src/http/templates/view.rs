//! The representation of a template in the API.

use serde::Serialize;
use utoipa::ToSchema;

use super::super::time::Time;
use crate::domain::{
    Arch, Budgets, BudgetsPatch, GuestOs, Handover, NetworkMode, Template,
    ready_check::ReadyCheck,
    template::DiskFormat,
    version::{AliasTarget, Damage, FileFault, Pin, VersionStatus},
};

/// A bootable image ready to clone, pinned by digest.
#[derive(Serialize, ToSchema)]
#[schema(as = Template)]
pub struct TemplateView {
    name: String,
    /// `sha256:…` over its whole content.
    digest: String,
    driver: String,
    os: GuestOs,
    arch: Arch,
    disk_format: DiskFormat,
    /// Size of the disk as the guest sees it.
    disk_virtual_bytes: u64,
    /// Space that its files take on this host.
    size_bytes: u64,
    /// Whether the hypervisor boots its kernel directly.
    kernel: bool,
    initramfs: bool,
    firmware: bool,
    ssh_key: bool,
    ssh_password: bool,
    cmdline: Option<String>,
    cpus: u32,
    memory_mib: u32,
    handover: Handover,
    user: String,
    /// What its guests may reach, unless the request or the pool sets it. Null: the default.
    network: Option<NetworkMode>,
    /// What has to hold in its guests before their runner is started.
    ready: Option<ReadyCheck>,
    /// What counts for a vm that is created now: the template's own budgets and, for the others, the defaults of the configuration.
    budgets: Budgets,
    /// The budgets that the template sets itself. Null: the default counts.
    own_budgets: BudgetsPatch,
    created_at: Time,
    /// All names that point at this version.
    names: Vec<String>,
    /// Since when and why the name points at this version.
    since: Option<Time>,
    why: Option<String>,
    /// Previous versions of the name that are on this host, newest first.
    previous: Vec<PreviousVersion>,
    /// Keeps this version from being pruned.
    pin: Option<PinView>,
    /// When a vm was last cloned from it, or when it was registered or pulled.
    last_used_at: Option<Time>,
    /// When it was last verified without damage.
    verified_at: Option<Time>,
    /// Damage of its files. No vm is made from a damaged version.
    damage: Option<DamageView>,
}

/// A version that a name pointed at before.
#[derive(Serialize, ToSchema)]
pub struct PreviousVersion {
    digest: String,
    /// When and why the name was pointed at it.
    since: Option<Time>,
    why: Option<String>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Pin)]
pub struct PinView {
    why: String,
    at: Time,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Damage)]
pub struct DamageView {
    at: Time,
    faults: Vec<FileFault>,
}

impl From<AliasTarget> for PreviousVersion {
    fn from(t: AliasTarget) -> Self {
        Self { digest: t.digest, since: t.since.map(Into::into), why: t.why }
    }
}

impl From<Pin> for PinView {
    fn from(pin: Pin) -> Self {
        Self { why: pin.why, at: pin.at.into() }
    }
}

impl From<Damage> for DamageView {
    fn from(damage: Damage) -> Self {
        Self { at: damage.at.into(), faults: damage.faults }
    }
}

impl TemplateView {
    /// `usual`: the budgets of templates that do not set their own.
    pub fn new(t: Template, s: VersionStatus, usual: &Budgets) -> Self {
        Self {
            kernel: t.files.kernel.is_some(),
            initramfs: t.files.initramfs.is_some(),
            firmware: t.files.firmware.is_some(),
            ssh_key: t.files.ssh_key.is_some(),
            ssh_password: t.files.ssh_password.is_some(),
            name: t.name,
            digest: t.digest,
            driver: t.driver,
            os: t.os,
            arch: t.arch,
            disk_format: t.disk_format,
            disk_virtual_bytes: t.disk_virtual_bytes,
            size_bytes: t.size_bytes,
            cmdline: t.cmdline,
            cpus: t.cpus,
            memory_mib: t.memory_mib,
            handover: t.handover,
            user: t.user,
            network: t.network,
            ready: t.ready,
            budgets: t.budgets.on(usual),
            own_budgets: t.budgets,
            created_at: t.created_at.into(),
            names: s.names,
            since: s.since.map(Into::into),
            why: s.why,
            previous: s.previous.into_iter().map(Into::into).collect(),
            pin: s.pin.map(Into::into),
            last_used_at: s.last_used_at.map(Into::into),
            verified_at: s.verified_at.map(Into::into),
            damage: s.damage.map(Into::into),
        }
    }
}
