//! What the guest runs: the setup script of myshoes, handed over in an encrypted variable.

use serde_json::{Value, json};

/// The same for every vm: it may not differ when a request is repeated, and it holds no secret.
const SCRIPT: &str = include_str!("guest.sh");

/// The `runner` of the request for a vm.
pub(super) fn runner(setup_script: &str) -> Value {
    json!({ "kind": "script", "script": SCRIPT, "env": { "MYSHOES_SETUP_SCRIPT": setup_script } })
}
