//! What an administrator can set for the vms of an adapter: in its file, and where the scheduler offers it, there as well.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::names;
use crate::domain::{BudgetsPatch, NetworkMode};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct VmSettings {
    /// Cores; default: the template's.
    #[schema(minimum = 1)]
    pub cpus: Option<u32>,
    /// Memory in MiB; default: the template's.
    #[schema(minimum = 32)]
    pub memory_mib: Option<u32>,
    /// What the guest may reach; default: the template's, else the strictest mode that the host can enforce and in which a
    /// runner can work.
    #[schema(inline)]
    pub network: Option<NetworkMode>,
    /// Labels of the vm to search by. Not `owner`, and none that begins with `garm.` or `myshoes.`.
    pub labels: BTreeMap<String, String>,
    /// Budgets that differ from the template's. With GARM, `lifetime_seconds` and `unobserved_seconds` are 30 days unless
    /// they are set here or by the template, because GARM decides how long a runner waits and works.
    #[schema(inline)]
    pub budgets: BudgetsPatch,
}

impl VmSettings {
    pub fn check(&self) -> Result<(), String> {
        if let Some(key) = self.labels.keys().find(|key| names::is_reserved(key)) {
            return Err(format!("labels: {key:?} is set by the adapter"));
        }
        match self.budgets.wrong() {
            Some((name, least, most)) => Err(format!("budgets.{name}: expected {least} to {most}")),
            None => Ok(()),
        }
    }

    /// These, and what is not set here as in `others`.
    pub fn or(self, others: &VmSettings) -> VmSettings {
        let mut labels = others.labels.clone();
        labels.extend(self.labels);
        VmSettings {
            cpus: self.cpus.or(others.cpus),
            memory_mib: self.memory_mib.or(others.memory_mib),
            network: self.network.or(others.network),
            labels,
            budgets: self.budgets.or(&others.budgets),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_one_that_says_something_counts() {
        let first = VmSettings { cpus: Some(1), labels: [("a".into(), "1".into())].into(), ..Default::default() };
        let others = VmSettings {
            cpus: Some(2),
            memory_mib: Some(64),
            labels: [("a".into(), "2".into()), ("b".into(), "2".into())].into(),
            ..Default::default()
        };
        let made = first.or(&others);
        assert_eq!(
            (made.cpus, made.memory_mib, made.labels["a"].as_str(), made.labels["b"].as_str()),
            (Some(1), Some(64), "1", "2")
        );
    }
}
