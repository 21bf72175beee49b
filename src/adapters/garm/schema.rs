//! JSON schemas of what an administrator writes, from the types that read it.

use serde_json::{Value, json};
use utoipa::PartialSchema;

use super::{super::vm_settings::VmSettings, settings::ProviderFile};

pub(super) fn of_settings() -> String {
    document::<ProviderFile>("Configuration of Mayfly's provider for GARM").to_string()
}

/// Of extra specs, which may hold other keys as well: GARM has some of its own.
pub(super) fn of_extra_specs() -> String {
    let mut schema = document::<VmSettings>("Extra specs of Mayfly's provider for GARM");
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("additionalProperties");
    }
    schema.to_string()
}

fn document<T: PartialSchema>(title: &str) -> Value {
    // Schemas consist of texts, numbers and maps.
    let mut schema = serde_json::to_value(T::schema()).unwrap_or_default();
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!(title);
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(schema: &str) -> Value {
        // Nothing refers to a document that GARM does not have.
        assert!(!schema.contains("$ref"), "{schema}");
        serde_json::from_str(schema).unwrap()
    }

    #[test]
    fn the_schemas_describe_every_key_and_refer_to_nothing() {
        let specs = parsed(&of_extra_specs());
        assert_eq!(specs["type"], "object");
        for key in ["cpus", "memory_mib", "network", "labels", "budgets"] {
            assert!(specs["properties"][key].is_object(), "{key}: {specs:#}");
        }
        assert!(specs["properties"]["budgets"]["allOf"][0]["properties"]["boot_seconds"].is_object(), "{specs:#}");
        assert_eq!(specs.get("additionalProperties"), None);
        let settings = parsed(&of_settings());
        assert_eq!(settings["additionalProperties"], false);
        assert!(settings["properties"]["flavors"].is_object() && settings["properties"]["token_file"].is_object());
    }
}
