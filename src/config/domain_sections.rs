//! The sections whose values are types of the domain, which knows no configuration: budgets and pools.

use serde::Deserialize;

use crate::{
    domain::{Budgets, BudgetsPatch, NetworkMode, Scope, SourceName, pool::USUAL_VMS},
    platform::settings::{Schema, SettingType, schema, section},
};

pub(super) const BUDGETS: Schema = schema! {
    /// How long each part of a vm's life may take, unless the template sets it. Seconds: 1 to 2592000.
    {
        /// Cloning the template, in seconds.
        clone_seconds: u32 = Budgets::default().clone_seconds, in 1..=2_592_000;
        /// From the start of the hypervisor until the guest answers, in seconds.
        boot_seconds: u32 = Budgets::default().boot_seconds, in 1..=2_592_000;
        /// Provisioning the guest and configuring its runner, in seconds.
        configure_seconds: u32 = Budgets::default().configure_seconds, in 1..=2_592_000;
        /// From the configured guest until the CI system reports the runner online, in seconds (for runner kinds that
        /// register).
        registration_seconds: u32 = Budgets::default().registration_seconds, in 1..=2_592_000;
        /// How long a runner may be online without a job, in seconds (for runner kinds that wait for jobs).
        idle_seconds: u32 = Budgets::default().idle_seconds, in 1..=2_592_000;
        /// How long a script may run without ever reporting whether it has a job, in seconds.
        unobserved_seconds: u32 = Budgets::default().unobserved_seconds, in 1..=2_592_000;
        /// How long the wrapper in a guest with a runner may report nothing, in seconds (at least 2). It reports
        /// several times as often; a guest whose wrapper was killed, or that lost its network, ends here.
        heartbeat_seconds: u32 = Budgets::default().heartbeat_seconds, in 2..=2_592_000;
        /// From the configured guest to the end of the vm, in seconds: a job that hangs ends here.
        lifetime_seconds: u32 = Budgets::default().lifetime_seconds, in 1..=2_592_000;
        /// From the announced end to the proof that the runner has finished, in seconds.
        drain_seconds: u32 = Budgets::default().drain_seconds, in 1..=2_592_000;
        /// Upper limit to which `drain_seconds` is extended while the CI system reports the runner as busy, in seconds.
        drain_cap_seconds: u32 = Budgets::default().drain_cap_seconds, in 1..=2_592_000;
        /// From the CI system's report that the runner has finished to the end of its guest, in seconds: time for the runner's
        /// last steps.
        settle_seconds: u32 = Budgets::default().settle_seconds, in 1..=2_592_000;
        /// How long a guest may take to power down if its work may be unfinished, in seconds (0 to 600).
        stop_grace_seconds: u32 = Budgets::default().stop_grace_seconds, in 0..=600;
        /// How long the guest of a vm that failed is kept running for debugging, in seconds; it holds its slot. 0: not at
        /// all. At most `slots.max_kept_seconds`; what is more counts as that.
        keep_on_failure_seconds: u32 = Budgets::default().keep_on_failure_seconds, in 0..=2_592_000;
        /// How often a vm is booted (1 to 10), each time from a fresh clone, before it is given up.
        max_attempts: u32 = Budgets::default().max_attempts, in 1..=10;
    }
};

pub(super) const POOL_BUDGETS: Schema = schema! {
    /// Budgets of a pool's vms that differ from the template's. Seconds: 1 to 2592000.
    {
        /// Cloning the template, in seconds.
        clone_seconds: Option<u32> = None, shown as "the template's";
        /// From the start of the hypervisor until the guest answers, in seconds.
        boot_seconds: Option<u32> = None, shown as "the template's";
        /// Provisioning the guest and configuring its runner, in seconds.
        configure_seconds: Option<u32> = None, shown as "the template's";
        /// From the configured guest until the CI system reports the runner online, in seconds.
        registration_seconds: Option<u32> = None, shown as "the template's";
        /// How long a runner may be online without a job, in seconds.
        idle_seconds: Option<u32> = None, shown as "the template's";
        /// How long a script may run without ever reporting whether it has a job, in seconds.
        unobserved_seconds: Option<u32> = None, shown as "the template's";
        /// How long the wrapper in a guest may report nothing, in seconds (at least 2).
        heartbeat_seconds: Option<u32> = None, shown as "the template's";
        /// From the configured guest to the end of the vm, in seconds: a job that hangs ends here.
        lifetime_seconds: Option<u32> = None, shown as "the template's";
        /// From the announced end to the proof that the runner has finished, in seconds.
        drain_seconds: Option<u32> = None, shown as "the template's";
        /// Upper limit to which `drain_seconds` is extended while the CI system reports the runner as busy, in seconds.
        drain_cap_seconds: Option<u32> = None, shown as "the template's";
        /// From the CI system's report that the runner has finished to the end of its guest, in seconds.
        settle_seconds: Option<u32> = None, shown as "the template's";
        /// How long a guest may take to power down if its work may be unfinished, in seconds (0 to 600).
        stop_grace_seconds: Option<u32> = None, shown as "the template's";
        /// How long the guest of a vm that failed is kept running for debugging, in seconds: 0 to `slots.max_kept_seconds`.
        keep_on_failure_seconds: Option<u32> = None, shown as "the template's";
        /// How often a vm is booted (1 to 10), each time from a fresh clone, before it is given up.
        max_attempts: Option<u32> = None, shown as "the template's";
    }
};

section! {
    /// One pool: which jobs of a source get a vm on this host, and what that vm is like. Pools can also be made through
    /// the API. These tables can be set in the file or on the command line, but not in the environment.
    pub struct PoolSection {
        /// Template that each vm is cloned from: name or digest of a template, or an image in a registry.
        template: Option<String> = None, shown as "none; required";
        /// The source of its jobs: `github`, or the name of a table in `[sources]`.
        job_source: SourceName = SourceName::github();
        /// Where its runners are registered. This decides whose jobs they can get.
        scope: Option<Scope> = None, shown as "none; required";
        /// Labels of its runners. A job matches the pool if every label that it asks for is among these.
        labels: Vec<String> = Vec::new(), shown as "none; required";
        /// Name of the runner group (organisations and enterprises only).
        group: Option<String> = None, shown as "the default group";
        /// Repositories whose jobs the pool takes: `owner/name`, where either part may be `*`.
        repositories: Vec<String> = Vec::new(), shown as "all that the scope covers";
        /// Live vms at once (1 to 10000).
        max_vms: u32 = USUAL_VMS;
        /// Vms booted ahead of jobs. Not possible yet: must be 0.
        warm: u32 = 0;
        /// Cores of each vm.
        cpus: Option<u32> = None, shown as "the template's";
        /// Memory of each vm, in MiB.
        memory_mib: Option<u32> = None, shown as "the template's";
        /// What the guests may reach: `isolated`, `internet` or `host`; docs/networks.md explains them.
        network: Option<NetworkMode> = None, shown as "the template's, else `internet` if the driver can enforce it";
        /// `false`: jobs get no new vms from this pool; existing vms keep their jobs.
        enabled: bool = true;
    }
}

impl SettingType for NetworkMode {
    const KIND: &'static str = "`isolated`, `internet` or `host`";
}

impl SettingType for Scope {
    const KIND: &'static str = "`owner/name`, an organisation, `enterprises/slug` or `*`";
}

impl SettingType for SourceName {
    const KIND: &'static str = "name of a source of jobs";
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct PoolTable {
    #[serde(flatten)]
    pub section: PoolSection,
    #[serde(default)]
    pub budgets: BudgetsPatch,
}
