//! What a guest is given to run. For now the kinds that need no CI system: `command`, `script` and `none`.

use std::collections::BTreeMap;

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::domain::{Code, Error};

pub mod github;

/// A script and its environment may hold registration tokens: kept encrypted, shown to nobody but the guest.
#[derive(Clone, Debug)]
pub struct Payload {
    pub script: SecretString,
    pub env: BTreeMap<String, SecretString>,
}

/// Largest script, in bytes.
pub const MAX_SCRIPT: usize = 256 * 1024;
/// Largest environment, names and values together, in bytes.
pub const MAX_ENV: usize = 64 * 1024;

#[derive(Serialize, Deserialize)]
struct Clear {
    script: String,
    env: BTreeMap<String, String>,
}

impl Payload {
    /// Checks what the guest's shell could not take; pointers are relative to the runner's object.
    pub fn check(&self, pointer: &str, script_field: &str) -> Result<(), Error> {
        let at = |field: &str| format!("{pointer}/{field}");
        let script = self.script.expose_secret();
        let invalid = || Error::new(Code::RequestInvalid, "the runner cannot be handed to a guest");
        if script.trim().is_empty() {
            return Err(invalid().field(at(script_field), "must not be empty"));
        }
        if script.len() > MAX_SCRIPT {
            return Err(invalid().field(at(script_field), format!("must be at most {MAX_SCRIPT} bytes")));
        }
        if script.contains('\0') {
            return Err(invalid().field(at(script_field), "must be text: it holds a NUL byte"));
        }
        let mut size = 0;
        for (key, value) in &self.env {
            let mut bytes = key.bytes();
            let named = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_');
            // The key is not repeated in the message: somebody may have put a secret on the wrong side.
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

    /// For sealing, and for telling equal requests apart from different ones. Not for logs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let clear = Clear {
            script: self.script.expose_secret().to_owned(),
            env: self.env.iter().map(|(k, v)| (k.clone(), v.expose_secret().to_owned())).collect(),
        };
        serde_json::to_vec(&clear).expect("strings serialise")
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Payload> {
        let clear: Clear = serde_json::from_slice(bytes).ok()?;
        Some(Payload { script: clear.script.into(), env: clear.env.into_iter().map(|(k, v)| (k, v.into())).collect() })
    }
}
