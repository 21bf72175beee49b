//! Settings of vms in the extra specs of a pool.

use serde_json::Value;

use super::{super::vm_settings::VmSettings, failure::GarmFailure};

const KEYS: [&str; 5] = ["cpus", "memory_mib", "network", "labels", "budgets"];

/// From extra specs, in which GARM and other tools have keys of their own. Anything but an object has none of ours.
pub(super) fn of_extra_specs(specs: &Value) -> Result<VmSettings, GarmFailure> {
    let Some(specs) = specs.as_object() else { return Ok(VmSettings::default()) };
    let ours = specs.iter().filter(|(key, value)| KEYS.contains(&key.as_str()) && !value.is_null());
    let ours = Value::Object(ours.map(|(key, value)| (key.clone(), value.clone())).collect());
    let settings: VmSettings = serde_path_to_error::deserialize(ours)
        .map_err(|error| GarmFailure::Failed(format!("extra_specs: {}: {}", error.path(), error.inner())))?;
    settings.check().map_err(|what| GarmFailure::Failed(format!("extra_specs: {what}")))?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::NetworkMode;

    #[test]
    fn extra_specs_of_any_form_are_accepted() {
        for specs in [
            json!(null),
            json!([1]),
            json!({}),
            json!("text"),
            json!({"runner_install_template": "aHVzaA==", "cpus": null}),
        ] {
            assert_eq!(of_extra_specs(&specs).unwrap(), VmSettings::default(), "{specs}");
        }
        let specs = json!({"cpus": 4, "network": "internet", "budgets": {"boot_seconds": 60}, "disable_updates": true});
        let settings = of_extra_specs(&specs).unwrap();
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
            let error = of_extra_specs(&specs).unwrap_err().to_string();
            assert!(error.starts_with(named), "{error}");
        }
    }
}
