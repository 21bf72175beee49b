//! What an administrator can set for the vms of a pool: in the provider's file, by flavor, or in the pool's extra specs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::{failure::GarmFailure, identity};
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
    /// Labels of the vm to search by. Not `owner`, and none that begins with `garm.`.
    pub labels: BTreeMap<String, String>,
    /// Budgets that differ from the template's. `lifetime_seconds` and `unobserved_seconds` are 30 days unless they are set
    /// here or by the template, because GARM decides how long a runner waits and works.
    #[schema(inline)]
    pub budgets: BudgetsPatch,
}

impl VmSettings {
    const KEYS: [&str; 5] = ["cpus", "memory_mib", "network", "labels", "budgets"];

    /// From extra specs, in which GARM and other tools have keys of their own. Anything but an object has none of ours.
    pub fn of_extra_specs(specs: &Value) -> Result<Self, GarmFailure> {
        let Some(specs) = specs.as_object() else { return Ok(Self::default()) };
        let ours = specs.iter().filter(|(key, value)| Self::KEYS.contains(&key.as_str()) && !value.is_null());
        let ours = Value::Object(ours.map(|(key, value)| (key.clone(), value.clone())).collect());
        let settings: Self = serde_path_to_error::deserialize(ours)
            .map_err(|error| GarmFailure::Failed(format!("extra_specs: {}: {}", error.path(), error.inner())))?;
        settings.check().map_err(|what| GarmFailure::Failed(format!("extra_specs: {what}")))?;
        Ok(settings)
    }

    pub fn check(&self) -> Result<(), String> {
        if let Some(key) = self.labels.keys().find(|key| identity::is_reserved(key)) {
            return Err(format!("labels: {key:?} is set by the provider"));
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
    use serde_json::json;

    use super::*;

    #[test]
    fn extra_specs_of_any_form_are_accepted() {
        for specs in [
            json!(null),
            json!([1]),
            json!({}),
            json!("text"),
            json!({"runner_install_template": "aHVzaA==", "cpus": null}),
        ] {
            assert_eq!(VmSettings::of_extra_specs(&specs).unwrap(), VmSettings::default(), "{specs}");
        }
        let specs = json!({"cpus": 4, "network": "internet", "budgets": {"boot_seconds": 60}, "disable_updates": true});
        let settings = VmSettings::of_extra_specs(&specs).unwrap();
        assert_eq!((settings.cpus, settings.network), (Some(4), Some(NetworkMode::Internet)));
        assert_eq!(settings.budgets.boot_seconds, Some(60));
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (specs, named) in [
            (json!({"cpus": "many"}), "extra_specs: cpus: "),
            (json!({"network": "open"}), "extra_specs: network: "),
            (json!({"budgets": {"boot": 1}}), "extra_specs: budgets.boot: "),
            (json!({"budgets": {"boot_seconds": 0}}), "extra_specs: budgets.boot_seconds: expected 1 to"),
            (json!({"labels": {"owner": "me"}}), "extra_specs: labels: \"owner\""),
        ] {
            let error = VmSettings::of_extra_specs(&specs).unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }

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
