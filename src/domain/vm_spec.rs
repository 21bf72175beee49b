//! The specification of a vm: what was requested, and what follows from its template once that is on the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    budgets::{Budgets, BudgetsPatch, MAX_BUDGET_SECONDS},
    capacity::Capacity,
    error::{Code, Error, Result},
    ids::{TokenId, VmId},
    network::NetworkMode,
    network_support::{NetworkSupport, NetworkWish, NetworkWishSource},
    ready_check::ReadyCheck,
    runner::RunnerKind,
    source_runner::{Registration, SourceRunner},
    template::{GuestOs, Handover, Template},
    template_settings::LEAST_MEMORY_MIB,
    token_limits::SizeLimits,
};

/// The complete request, including the defaults of the template and of the configuration. No secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmSpec {
    pub id: VmId,
    pub name: String,
    /// The name or the image reference of the request.
    pub template: String,
    #[serde(flatten)]
    pub source: TemplateSource,
    pub runner: RunnerKind,
    /// For the runner of a source of jobs. Under the name that it had while GitHub was the only source.
    #[serde(default, rename = "github", skip_serializing_if = "Option::is_none")]
    pub source_runner: Option<SourceRunner>,
    /// The pool that the vm was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The API token with which it was created. `None`: for a loop of the service, or by an earlier version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<TokenId>,
    pub labels: BTreeMap<String, String>,
    /// The defaults while the vm waits for its template, then the template's; in both cases with the changes of the
    /// request.
    pub budgets: Budgets,
    /// Whether each attempt has its own instance name. Vms from before such names share one name for all attempts,
    /// and their instance may be running.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub instance_per_attempt: bool,
}

impl VmSpec {
    /// Everything that follows from the template, if it is known. Every vm that holds a slot has it.
    pub fn resolved(&self) -> Option<&ResolvedSpec> {
        match &self.source {
            TemplateSource::Resolved(spec) => Some(spec),
            TemplateSource::Awaited { .. } => None,
        }
    }

    /// The runner that Mayfly itself registers, observes and deregisters at its source of jobs.
    pub fn managed(&self) -> Option<&SourceRunner> {
        self.source_runner.as_ref().filter(|runner| runner.registration == Registration::Managed)
    }
}

/// Everything that follows from the template, with the changes of the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedSpec {
    /// The version that the name or the image reference was resolved to: `sha256:…`.
    pub template_digest: String,
    pub driver: String,
    pub os: GuestOs,
    pub handover: Handover,
    pub cpus: u32,
    pub memory_mib: u32,
    /// What the guest may reach. `None`: a vm of a version without modes; its driver's settings decide.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// What has to hold in the guest before its runner is started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyCheck>,
}

/// What a request sets instead of the template, kept until the template is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateOverrides {
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    pub budgets: BudgetsPatch,
    /// From the request, or the defaults.
    pub queue_seconds: u32,
    /// Of the token with which the vm was requested.
    #[serde(default, skip_serializing_if = "SizeLimits::is_none")]
    pub limits: SizeLimits,
}

/// Either everything is known, or the vm waits for an image. In a record the two are distinguished by their fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TemplateSource {
    Resolved(ResolvedSpec),
    Awaited { awaits: TemplateOverrides },
}

/// For whom a vm is made, as far as its network depends on it.
#[derive(Clone, Copy, Debug)]
pub struct NetworkUser<'a> {
    pub runner: RunnerKind,
    /// The pool from which the request was made.
    pub pool: Option<&'a str>,
}

impl TemplateOverrides {
    /// The resolved values for a vm of this template, if a host of this capacity can ever run it, and the template's
    /// driver can enforce the network mode.
    pub fn resolve(
        &self,
        template: &Template,
        default_budgets: &Budgets,
        capacity: &Capacity,
        user: NetworkUser<'_>,
        network_support: &NetworkSupport,
    ) -> Result<(ResolvedSpec, Budgets)> {
        let cpus = self.cpus.unwrap_or(template.cpus);
        let memory_mib = self.memory_mib.unwrap_or(template.memory_mib);
        fits(capacity, cpus, memory_mib)?;
        self.limits.check(cpus, memory_mib, template.disk_virtual_bytes)?;
        let network = network_support.resolve(&template.driver, self.network_wish(template, user.pool), user.runner)?;
        let spec = ResolvedSpec {
            template_digest: template.digest.clone(),
            driver: template.driver.clone(),
            os: template.os,
            handover: template.handover,
            cpus,
            memory_mib,
            network: Some(network),
            ready: template.ready.clone(),
        };
        Ok((spec, self.budgets(&template.budgets.on(default_budgets), capacity)?))
    }

    /// The request or its pool precedes the template.
    fn network_wish<'a>(&self, template: &'a Template, pool: Option<&'a str>) -> Option<NetworkWish<'a>> {
        let asked = pool.map_or(NetworkWishSource::Request, NetworkWishSource::Pool);
        let own = self.network.map(|mode| NetworkWish { mode, source: asked });
        let of_template = |mode| NetworkWish { mode, source: NetworkWishSource::Template(&template.name) };
        own.or_else(|| template.network.map(of_template))
    }

    /// Validates what does not depend on the template, and returns the budgets that apply until the template is
    /// known.
    pub fn budgets_until_resolved(&self, default_budgets: &Budgets, capacity: &Capacity) -> Result<Budgets> {
        let (cpus, memory_mib) = (self.cpus.unwrap_or(1), self.memory_mib.unwrap_or(LEAST_MEMORY_MIB));
        fits(capacity, cpus, memory_mib)?;
        self.limits.check(cpus, memory_mib, 0)?;
        self.budgets(default_budgets, capacity)
    }

    fn budgets(&self, base: &Budgets, capacity: &Capacity) -> Result<Budgets> {
        if self.queue_seconds > MAX_BUDGET_SECONDS {
            return Err(Error::new(Code::RequestInvalid, "the wait is too long")
                .field("/queue_timeout_seconds", format!("0 to {MAX_BUDGET_SECONDS}")));
        }
        let most = capacity.max_kept_seconds;
        if self.budgets.keep_on_failure_seconds.is_some_and(|asked| asked > most) {
            return Err(Error::new(Code::RequestInvalid, "the guest of a failed vm would be kept for too long")
                .field("/budgets/keep_on_failure_seconds", kept_at_most(most)));
        }
        // A default that is longer than the host allows counts as far as the host allows it.
        let keep_on_failure_seconds = base.keep_on_failure_seconds.min(most);
        let base = Budgets { queue_seconds: self.queue_seconds, keep_on_failure_seconds, ..base.clone() };
        self.budgets.over(&base)
    }
}

pub fn kept_at_most(seconds: u32) -> String {
    format!("0 to {seconds}, which is `slots.max_kept_seconds` in the configuration of the service")
}

fn fits(capacity: &Capacity, cpus: u32, memory_mib: u32) -> Result<()> {
    let impossible = |field: &str, detail: String| {
        Err(Error::new(Code::SizeImpossible, "no slot of this host could ever hold it").field(field, detail))
    };
    if cpus == 0 || cpus > capacity.cpus {
        return impossible("/cpus", format!("1 to {}", capacity.cpus));
    }
    if memory_mib < LEAST_MEMORY_MIB || memory_mib > capacity.memory_mib {
        return impossible("/memory_mib", format!("{LEAST_MEMORY_MIB} to {}", capacity.memory_mib));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::template::{Arch, DiskFormat, TemplateFiles};

    fn template(network: Option<NetworkMode>) -> Template {
        Template {
            name: "micro".into(),
            digest: "sha256:0".into(),
            driver: "qemu".into(),
            os: GuestOs::Linux,
            arch: Arch::X86_64,
            disk_format: DiskFormat::Raw,
            disk_virtual_bytes: 1,
            size_bytes: 1,
            cpus: 1,
            memory_mib: 64,
            cmdline: None,
            handover: Handover::Seed,
            user: "runner".into(),
            network,
            ready: None,
            budgets: BudgetsPatch::default(),
            files: TemplateFiles::default(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    /// A default that is longer than the host allows counts as far as the host allows it; a request is refused.
    #[test]
    fn the_host_limits_how_long_a_failed_vm_is_kept() {
        let capacity = Capacity { macos_slots: 0, linux_slots: 1, cpus: 1, memory_mib: 64, max_kept_seconds: 60 };
        let keeps = |seconds| BudgetsPatch { keep_on_failure_seconds: seconds, ..BudgetsPatch::default() };
        let usual = keeps(Some(600)).on(&Budgets::default());
        let user = NetworkUser { runner: RunnerKind::Command, pool: None };
        let of = |asked, template_has| {
            let asked = TemplateOverrides { budgets: keeps(asked), ..TemplateOverrides::default() };
            let template = Template { budgets: keeps(template_has), ..template(None) };
            let made = asked.resolve(&template, &usual, &capacity, user, &NetworkSupport::default());
            made.map(|(_, budgets)| budgets.keep_on_failure_seconds)
        };
        for (asked, template_has, kept) in
            [(None, None, 60), (None, Some(30), 30), (None, Some(90), 60), (Some(0), Some(30), 0), (Some(60), None, 60)]
        {
            assert_eq!(of(asked, template_has).unwrap(), kept, "{asked:?} {template_has:?}");
        }
        assert_eq!(of(Some(61), None).unwrap_err().fields[0].pointer, "/budgets/keep_on_failure_seconds");
    }

    #[test]
    fn the_request_precedes_the_template_and_the_template_the_default() {
        use NetworkMode::{Host, Internet, Isolated};
        let capacity = Capacity { macos_slots: 0, linux_slots: 1, cpus: 1, memory_mib: 64, max_kept_seconds: 60 };
        let mode = |asked, template_has, pool, can: &NetworkSupport| {
            let asked = TemplateOverrides { network: asked, ..TemplateOverrides::default() };
            let user = NetworkUser { runner: RunnerKind::GitHub, pool };
            asked
                .resolve(&template(template_has), &Budgets::default(), &capacity, user, can)
                .map(|(spec, _)| spec.network)
        };
        let all = NetworkSupport::default();
        for pool in [None, Some("linux")] {
            for (asked, template_has, expected) in [
                (None, None, Internet),
                (None, Some(Host), Host),
                (Some(Isolated), None, Isolated),
                (Some(Isolated), Some(Host), Isolated),
                (Some(Host), Some(Isolated), Host),
            ] {
                assert_eq!(mode(asked, template_has, pool, &all).unwrap(), Some(expected));
            }
        }
        let open = NetworkSupport::default().without(Isolated, "do this").without(Internet, "do that");
        assert_eq!(mode(None, None, None, &open).unwrap(), Some(Host));
        for (asked, template_has, pool, who) in [
            (Some(Isolated), None, None, "the request asks for `network: isolated`"),
            (Some(Isolated), Some(Host), Some("linux"), "the pool linux asks for `network: isolated`"),
            (None, Some(Internet), Some("linux"), "the template micro asks for `network: internet`"),
        ] {
            let error = mode(asked, template_has, pool, &open).unwrap_err();
            assert!(error.detail.starts_with(who), "{error}");
        }
    }
}
