//! A runner's configuration: files in base64, in JSON, in base64.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::world::Runner;

pub fn encode(runner: &Runner, server: &str, entity: &str) -> String {
    let file = |value: Value| STANDARD.encode(value.to_string());
    let settings = json!({
        "AgentId": runner.id.to_string(), "AgentName": runner.name, "PoolId": runner.group.to_string(), "PoolName": "Default",
        "ServerUrl": server, "ServerUrlV2": server, "UseV2Flow": true, "GitHubUrl": entity, "Ephemeral": "true",
        "WorkFolder": "_work", "DisableUpdate": "false",
    });
    let credentials = json!({"scheme": "OAuth", "data": {"clientId": runner.secret, "authorizationUrl": server}});
    // Of the size of the real one; the key itself has no meaning here.
    let key = json!({"d": runner.secret.repeat(40), "exponent": "AQAB", "modulus": runner.secret.repeat(40)});
    let files =
        json!({".runner": file(settings), ".credentials": file(credentials), ".credentials_rsaparams": file(key)});
    STANDARD.encode(files.to_string())
}

/// The runner's id and secret, from what `encode` made.
pub fn decode(encoded: &str) -> Option<(u64, String)> {
    let files: Value = serde_json::from_slice(&STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let file =
        |name: &str| -> Option<Value> { serde_json::from_slice(&STANDARD.decode(files[name].as_str()?).ok()?).ok() };
    let id = file(".runner")?["AgentId"].as_str()?.parse().ok()?;
    Some((id, file(".credentials")?["data"]["clientId"].as_str()?.to_owned()))
}
