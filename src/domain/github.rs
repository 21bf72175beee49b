//! What a vm knows about GitHub: the registration of its runner, and the jobs that the runner was given.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{Code, Error, Result},
    ids::VmId,
    scope::Scope,
};

/// How a GitHub runner is registered. No secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GitHubRunner {
    /// Where it is registered.
    pub scope: Scope,
    /// Exactly the labels that it is registered with: none is added.
    pub labels: Vec<String>,
    /// By name. `None`: the default group.
    pub group: Option<String>,
    pub registration: Registration,
}

impl GitHubRunner {
    /// Errors that GitHub would report; pointers are relative to this object.
    pub fn check(&self, pointer: &str) -> Result<()> {
        let invalid = |field: &str, what: &str| {
            Err(Error::new(Code::RequestInvalid, "GitHub takes no such runner")
                .field(format!("{pointer}/{field}"), what))
        };
        if self.labels.is_empty() || self.labels.len() > MAX_LABELS {
            return invalid("labels", "1 to 100 labels");
        }
        for label in &self.labels {
            let plain = !label.chars().any(|c| c.is_control() || c == ',') && label.trim() == label;
            if label.is_empty() || label.chars().count() > MAX_LABEL || !plain {
                return invalid(
                    "labels",
                    "each 1 to 256 characters, without commas, control characters or spaces around it",
                );
            }
        }
        if let Some(group) = &self.group {
            if matches!(self.scope, Scope::Repository { .. }) {
                return invalid("group", "repositories have no runner groups");
            }
            if group.trim().is_empty() || group.len() > MAX_LABEL || group.chars().any(char::is_control) {
                return invalid("group", "the name of a runner group, 1 to 256 characters");
            }
        }
        Ok(())
    }

    /// Whether a job that asks for these labels may be given to this runner: GitHub ignores case.
    pub fn takes(&self, wanted: &[String]) -> bool {
        let fold = |label: &String| label.to_lowercase();
        let mine: Vec<String> = self.labels.iter().map(fold).collect();
        wanted.iter().map(fold).all(|label| mine.contains(&label))
    }
}

/// Largest number of labels that GitHub accepts for one runner.
const MAX_LABELS: usize = 100;
const MAX_LABEL: usize = 256;

/// How the runner is registered at GitHub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// Mayfly requests a just-in-time configuration from GitHub shortly before the guest needs it.
    Managed,
    /// The caller brought a just-in-time configuration.
    JitConfig,
    /// The caller brought a registration token; the guest registers itself.
    Token,
}

/// Longest name of a runner at GitHub.
const MAX_RUNNER_NAME: usize = 64;

/// The name of this attempt's runner at GitHub: a new one for each attempt, because GitHub accepts a name once. The
/// end of the vm's id makes it unique among all hosts that share a scope.
pub fn runner_name(vm_name: &str, id: VmId, attempt: u32) -> String {
    let id = id.0.simple().to_string();
    let end = &id[20..];
    let tail = if vm_name.ends_with(end) { format!("-{attempt}") } else { format!("-{end}-{attempt}") };
    // A vm's name is ASCII.
    let kept: String = vm_name.chars().take(MAX_RUNNER_NAME.saturating_sub(tail.len())).collect();
    format!("{kept}{tail}")
}

/// A runner at GitHub, with its id and name there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// Null for a runner that registers itself in its guest, with a token of the caller.
    pub runner_id: Option<u64>,
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runner_has_a_name_of_its_own_that_github_takes() {
        let id: VmId = "01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a".parse().unwrap();
        assert_eq!(runner_name("vm-1f2e3d4c5b6a", id, 2), "vm-1f2e3d4c5b6a-2");
        assert_eq!(runner_name("build", id, 1), "build-1f2e3d4c5b6a-1");
        let long = runner_name(&"n".repeat(63), id, 12);
        assert!(long.len() == MAX_RUNNER_NAME && long.ends_with("n-1f2e3d4c5b6a-12"), "{long}");
    }

    #[test]
    fn what_github_would_refuse_is_refused_here() {
        let runner = |scope: &str, labels: &[&str], group: Option<&str>| GitHubRunner {
            scope: scope.parse().unwrap(),
            labels: labels.iter().map(|&l| l.to_owned()).collect(),
            group: group.map(str::to_owned),
            registration: Registration::Managed,
        };
        let wrong = |r: GitHubRunner| r.check("/runner").unwrap_err().fields[0].pointer.clone();
        assert_eq!(wrong(runner("acme", &[], None)), "/runner/labels");
        assert_eq!(wrong(runner("acme", &["a,b"], None)), "/runner/labels");
        assert_eq!(wrong(runner("acme", &[" a"], None)), "/runner/labels");
        assert_eq!(wrong(runner("acme/app", &["a"], Some("g"))), "/runner/group");
        assert!(runner("acme", &["a"], Some("Big Macs")).check("/runner").is_ok());
        assert!(runner("acme", &["Self-Hosted", "macOS"], None).takes(&["macos".into()]));
        assert!(!runner("acme", &["macos"], None).takes(&["macos".into(), "x64".into()]));
    }
}
