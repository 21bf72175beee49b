//! Reads the runner's id and name from a just-in-time configuration: files in base64, in JSON, in base64.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::Value;

use crate::domain::source_runner::Registered;

#[derive(Deserialize)]
struct JitFiles {
    #[serde(rename = ".runner")]
    runner: String,
}

#[derive(Deserialize)]
struct RunnerIdentityFile {
    #[serde(rename = "AgentId", alias = "agentId")]
    id: Value,
    #[serde(rename = "AgentName", alias = "agentName")]
    name: String,
}

/// The runner of the configuration. `None`: not in the known format. That is no error, because the format is private
/// to GitHub and its runner.
pub fn runner_of(configuration: &SecretString) -> Option<Registered> {
    let files: JitFiles = parsed(configuration.expose_secret())?;
    let RunnerIdentityFile { id, name } = parsed(&files.runner)?;
    let id = match id {
        Value::Number(id) => id.as_u64(),
        Value::String(id) => id.parse().ok(),
        _ => None,
    }?;
    (!name.is_empty()).then_some(Registered { runner_id: Some(id.into()), name })
}

fn parsed<T: for<'de> Deserialize<'de>>(encoded: &str) -> Option<T> {
    let bytes = STANDARD.decode(encoded.trim()).ok()?;
    // .NET begins files with a byte order mark.
    serde_json::from_slice(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration(runner: &str) -> SecretString {
        let files = format!(r#"{{".runner": "{}", ".credentials": "e30="}}"#, STANDARD.encode(runner));
        STANDARD.encode(files).into()
    }

    #[test]
    fn it_says_whose_it_is() {
        let mine = Some(Registered { runner_id: Some(42.into()), name: "mine".into() });
        for runner in [
            r#"{"AgentId": "42", "AgentName": "mine", "PoolId": 1}"#,
            r#"{"agentId": 42, "agentName": "mine"}"#,
            "\u{feff}{\"AgentId\": 42, \"AgentName\": \"mine\"}",
        ] {
            assert_eq!(runner_of(&configuration(runner)), mine, "{runner}");
        }
        for other in [
            r#"{"AgentName": "mine"}"#,
            r#"{"AgentId": -1, "AgentName": "mine"}"#,
            r#"{"AgentId": 1, "AgentName": ""}"#,
            "x",
        ] {
            assert_eq!(runner_of(&configuration(other)), None, "{other}");
        }
        for other in ["", "aGVsbG8=", "e30=", "not base64"] {
            assert_eq!(runner_of(&other.to_owned().into()), None, "{other}");
        }
    }
}
