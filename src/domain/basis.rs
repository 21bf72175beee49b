//! What a vm is made from: a template that is here, or an image that is still to come.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{Code, Error, Result},
    host::Capacity,
    template::{GuestOs, Handover, Template},
    vm::Budgets,
};

/// A budget longer than this is a mistake of units.
pub const MAX_BUDGET_SECONDS: u32 = 30 * 24 * 3600;

/// What follows from the template, with what the request changes of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What the name or the image stood for: `sha256:…`.
    pub template_digest: String,
    pub driver: String,
    pub os: GuestOs,
    pub handover: Handover,
    pub cpus: u32,
    pub memory_mib: u32,
}

/// What a request says of the vm's size and budgets, kept until there is a template to apply it to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub budgets: BudgetsPatch,
    /// Of the request, or what is usual here.
    pub queue_seconds: u32,
}

/// Either all of it is known, or it waits for an image. In a record the two are told apart by their fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Basis {
    Known(Spec),
    Awaited { awaits: Asked },
}

impl Asked {
    /// What a vm of this template is then, if a host of this capacity can ever run it.
    pub fn of(&self, template: &Template, capacity: &Capacity) -> Result<(Spec, Budgets)> {
        let cpus = self.cpus.unwrap_or(template.cpus);
        let memory_mib = self.memory_mib.unwrap_or(template.memory_mib);
        fits(capacity, cpus, memory_mib)?;
        let spec = Spec {
            template_digest: template.digest.clone(),
            driver: template.driver.clone(),
            os: template.os,
            handover: template.handover,
            cpus,
            memory_mib,
        };
        Ok((spec, self.budgets(&template.budgets)?))
    }

    /// What is wrong with it whatever the template will be, and the budgets until there is one.
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

/// Budgets that differ from the template's; all in seconds but `max_attempts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BudgetsPatch {
    #[schema(minimum = 1, maximum = 2592000)]
    pub clone_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub boot_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub configure_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub registration_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub idle_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub lifetime_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub drain_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub drain_cap_seconds: Option<u32>,
    #[schema(minimum = 1, maximum = 2592000)]
    pub settle_seconds: Option<u32>,
    #[schema(minimum = 0, maximum = 600)]
    pub stop_grace_seconds: Option<u32>,
    /// How often the vm is booted, on a fresh clone each time, before it is given up.
    #[schema(minimum = 1, maximum = 10)]
    pub max_attempts: Option<u32>,
}

impl BudgetsPatch {
    pub fn over(&self, base: &Budgets) -> Result<Budgets> {
        let mut b = base.clone();
        let fields: [(&str, Option<u32>, &mut u32); 10] = [
            ("clone_seconds", self.clone_seconds, &mut b.clone_seconds),
            ("boot_seconds", self.boot_seconds, &mut b.boot_seconds),
            ("configure_seconds", self.configure_seconds, &mut b.configure_seconds),
            ("registration_seconds", self.registration_seconds, &mut b.registration_seconds),
            ("idle_seconds", self.idle_seconds, &mut b.idle_seconds),
            ("lifetime_seconds", self.lifetime_seconds, &mut b.lifetime_seconds),
            ("drain_seconds", self.drain_seconds, &mut b.drain_seconds),
            ("drain_cap_seconds", self.drain_cap_seconds, &mut b.drain_cap_seconds),
            ("settle_seconds", self.settle_seconds, &mut b.settle_seconds),
            ("max_attempts", self.max_attempts, &mut b.max_attempts),
        ];
        for (name, value, target) in fields {
            let Some(value) = value else { continue };
            let max = if name == "max_attempts" { 10 } else { MAX_BUDGET_SECONDS };
            if value == 0 || value > max {
                return Err(Error::new(Code::RequestInvalid, "a budget is out of range")
                    .field(format!("/budgets/{name}"), format!("1 to {max}")));
            }
            *target = value;
        }
        if let Some(grace) = self.stop_grace_seconds {
            if grace > 600 {
                return Err(Error::new(Code::RequestInvalid, "a budget is out of range")
                    .field("/budgets/stop_grace_seconds", "0 to 600"));
            }
            b.stop_grace_seconds = grace;
        }
        Ok(b)
    }
}
