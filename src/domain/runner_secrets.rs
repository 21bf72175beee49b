//! The secrets of a runner: its script, registration and environment. Stored encrypted; only the guest receives them.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::domain::{Code, Error};

/// Secrets for the guest: stored encrypted, and shown to no one else.
#[derive(Clone, Debug, Default)]
pub struct RunnerSecrets {
    /// For the kinds `command` and `script`. It may contain registration tokens.
    pub script: Option<SecretString>,
    /// The just-in-time configuration or registration token that the caller brought for GitHub's runner.
    pub registration: Option<SecretString>,
    pub env: BTreeMap<String, SecretString>,
}

/// Largest script, in bytes.
pub const MAX_SCRIPT: usize = 256 * 1024;
/// Largest environment, names and values together, in bytes.
pub const MAX_ENV: usize = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Clear {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    script: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    registration: Option<String>,
    env: BTreeMap<String, String>,
}

impl RunnerSecrets {
    /// Checks that the guest's shell can hold them; pointers are relative to the runner's object.
    pub fn check(&self, pointer: &str, script_field: &str) -> Result<(), Error> {
        let at = |field: &str| format!("{pointer}/{field}");
        let invalid = || Error::new(Code::RequestInvalid, "the runner cannot be passed to a guest");
        if let Some(script) = self.script.as_ref().or(self.registration.as_ref()).map(ExposeSecret::expose_secret) {
            if script.trim().is_empty() {
                return Err(invalid().field(at(script_field), "must not be empty"));
            }
            if script.len() > MAX_SCRIPT {
                return Err(invalid().field(at(script_field), format!("must be at most {MAX_SCRIPT} bytes")));
            }
            if script.contains('\0') {
                return Err(invalid().field(at(script_field), "must be text: it holds a NUL byte"));
            }
        }
        // Both are one word in every encoding that GitHub uses, and the runner's scripts pass them on unquoted.
        if let Some(registration) = &self.registration
            && !registration.expose_secret().bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(invalid().field(at(script_field), "must be one word of visible ASCII characters"));
        }
        let mut size = 0;
        for (key, value) in &self.env {
            let mut bytes = key.bytes();
            let named = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
            // The name is not repeated in the message, because it may be a misplaced secret.
            if !named {
                return Err(
                    invalid().field(at("env"), "names must be letters, digits and _, not beginning with a digit")
                );
            }
            if value.expose_secret().contains('\0') {
                return Err(invalid().field(at(&format!("env/{key}")), "must be text: it holds a NUL byte"));
            }
            size += key.len() + value.expose_secret().len();
        }
        if size > MAX_ENV {
            return Err(invalid().field(at("env"), format!("must be at most {MAX_ENV} bytes in all")));
        }
        Ok(())
    }

    /// What tells one runner from another: its script, and the names of its variables. Not for logs.
    pub fn identity(&self) -> Vec<u8> {
        let names: Vec<&String> = self.env.keys().collect();
        let identity = (self.script.as_ref().map(ExposeSecret::expose_secret), names);
        serde_json::to_vec(&identity).expect("strings serialise")
    }

    /// For encryption, and for comparing requests with earlier versions. Not for logs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let clear = Clear {
            script: self.script.as_ref().map(|s| s.expose_secret().to_owned()),
            registration: self.registration.as_ref().map(|s| s.expose_secret().to_owned()),
            env: self.env.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect(),
        };
        serde_json::to_vec(&clear).expect("strings serialise")
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<RunnerSecrets> {
        let clear: Clear = serde_json::from_slice(bytes).ok()?;
        Some(RunnerSecrets {
            script: clear.script.map(Into::into),
            registration: clear.registration.map(Into::into),
            env: clear.env.into_iter().map(|(k, v)| (k, v.into())).collect(),
        })
    }
}
