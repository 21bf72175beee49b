//! What GARM is told of an instance.

use serde_json::{Value, json};

/// GARM accepts only `running` as the answer to a creation, also for a vm that waits for its slot. Its id is its name, so that
/// deletions by name and by id are the same.
pub(super) fn running(name: &str) -> Value {
    json!({ "provider_id": name, "name": name, "status": "running" })
}

/// The same with the system and the architecture that the pool declares.
pub(super) fn created(name: &str, os_type: &str, arch: &str) -> Value {
    let mut instance = running(name);
    for (key, value) in [("os_type", os_type), ("os_arch", arch)] {
        if !value.is_empty() {
            instance[key] = value.into();
        }
    }
    instance
}
