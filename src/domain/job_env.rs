//! Which environment variables a job may have.

use std::collections::BTreeMap;

/// Names that the wrapper uses itself, or that some shell does not simply assign: it refuses and exits (`UID`),
/// evaluates the value as an arithmetic expression, which may contain a command (`RANDOM`), or ignores it.
const RESERVED: [&str; 19] = [
    "BASHOPTS",
    "BASH_COMPAT",
    "BASH_VERSINFO",
    "BASH_XTRACEFD",
    "EUID",
    "GROUPS",
    "HISTCMD",
    "IFS",
    "LINENO",
    "OPTIND",
    "PPID",
    "RANDOM",
    "SECONDS",
    "SHELLOPTS",
    "SRANDOM",
    "UID",
    "interpreter",
    "kit",
    "new_session",
];
const RESERVED_PREFIXES: [&str; 3] = ["MAYFLY_", "ACTIONS_RUNNER_HOOK_", "ACTIONS_RUNNER_INPUT_"];

/// Why an environment variable is refused. Never shows its value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobEnvError {
    #[error("environment variable name {key:?} must match [A-Za-z_][A-Za-z0-9_]*")]
    Name { key: String },
    #[error("environment variable {key} is reserved, choose another name")]
    Reserved { key: String },
    #[error("the value of environment variable {key} holds a NUL byte")]
    Value { key: String },
}

/// Refuses names that a guest's shell cannot assign, or that Mayfly or the runner uses itself.
pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), JobEnvError> {
    for (key, value) in env {
        let starts_well = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !starts_well || !key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            return Err(JobEnvError::Name { key: key.clone() });
        }
        if RESERVED.contains(&key.as_str()) || RESERVED_PREFIXES.iter().any(|p| key.starts_with(p)) {
            return Err(JobEnvError::Reserved { key: key.clone() });
        }
        if value.contains('\0') {
            return Err(JobEnvError::Value { key: key.clone() });
        }
    }
    Ok(())
}
