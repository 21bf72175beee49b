//! The specification of a vm: what was requested, and what follows from its template once that is on the host.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    budgets::{Budgets, BudgetsPatch, MAX_BUDGET_SECONDS},
    capacity::Capacity,
    error::{Code, Error, Result},
    github::{GitHubRunner, Registration},
    ids::VmId,
    runner::RunnerKind,
    template::{GuestOs, Handover, Template},
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
    /// For a GitHub runner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub github: Option<GitHubRunner>,
    /// The pool that the vm was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
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

    /// The runner that Mayfly itself registers, observes and deregisters at GitHub.
    pub fn managed(&self) -> Option<&GitHubRunner> {
        self.github.as_ref().filter(|github| github.registration == Registration::Managed)
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
}

/// The size and budgets of a request, kept until the template is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeRequest {
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub budgets: BudgetsPatch,
    /// From the request, or the defaults.
    pub queue_seconds: u32,
}

/// Either everything is known, or the vm waits for an image. In a record the two are distinguished by their fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TemplateSource {
    Resolved(ResolvedSpec),
    Awaited { awaits: SizeRequest },
}

impl SizeRequest {
    /// The resolved values for a vm of this template, if a host of this capacity can ever run it.
    pub fn of(&self, template: &Template, capacity: &Capacity) -> Result<(ResolvedSpec, Budgets)> {
        let cpus = self.cpus.unwrap_or(template.cpus);
        let memory_mib = self.memory_mib.unwrap_or(template.memory_mib);
        fits(capacity, cpus, memory_mib)?;
        let spec = ResolvedSpec {
            template_digest: template.digest.clone(),
            driver: template.driver.clone(),
            os: template.os,
            handover: template.handover,
            cpus,
            memory_mib,
        };
        Ok((spec, self.budgets(&template.budgets)?))
    }

    /// Validates what does not depend on the template, and returns the budgets that apply until the template is
    /// known.
    pub fn before(&self, usual: &Budgets, capacity: &Capacity) -> Result<Budgets> {
        fits(capacity, self.cpus.unwrap_or(1), self.memory_mib.unwrap_or(LEAST_MEMORY_MIB))?;
        self.budgets(usual)
    }

    fn budgets(&self, base: &Budgets) -> Result<Budgets> {
        if self.queue_seconds > MAX_BUDGET_SECONDS {
            return Err(Error::new(Code::RequestInvalid, "the wait is too long")
                .field("/queue_timeout_seconds", format!("0 to {MAX_BUDGET_SECONDS}")));
        }
        Ok(Budgets { queue_seconds: self.queue_seconds, ..self.budgets.over(base)? })
    }
}

const LEAST_MEMORY_MIB: u32 = 32;

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
