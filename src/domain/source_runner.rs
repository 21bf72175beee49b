//! What a vm knows about its source of jobs: the registration of its runner, and its name there.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{Code, Error, Result},
    ids::VmId,
    remote_id::RemoteId,
    scope::Scope,
    source_kind::SourceKind,
    source_name::SourceName,
};

/// How the runner of a source of jobs is registered. No secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceRunner {
    /// The server where it is registered. Not written for the only source of earlier versions, so that fingerprints of
    /// requests to them stay equal.
    #[serde(default, skip_serializing_if = "SourceName::is_github")]
    pub source: SourceName,
    /// Where it is registered on that server.
    pub scope: Scope,
    /// Exactly the labels that it is registered with: none is added.
    pub labels: Vec<String>,
    /// By name. `None`: the default group.
    pub group: Option<String>,
    pub registration: Registration,
    /// The job that it takes, at a source whose runners are for one particular job. Not written for others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<RemoteId>,
}

/// A scope of one source. Whether a server can be reached, and with which limits, differs between them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceScope {
    pub source: SourceName,
    pub scope: Scope,
}

impl SourceRunner {
    pub fn source_scope(&self) -> SourceScope {
        SourceScope { source: self.source.clone(), scope: self.scope.clone() }
    }

    /// Errors that servers of every kind would report; pointers are relative to this object.
    pub fn check(&self, pointer: &str) -> Result<()> {
        let invalid = |field: &str, what: &str| {
            Err(Error::new(Code::RequestInvalid, "there can be no such runner")
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
            if !matches!(self.scope, Scope::Organization(_) | Scope::Enterprise(_)) {
                return invalid("group", "only organisations and enterprises have runner groups");
            }
            if group.trim().is_empty() || group.len() > MAX_LABEL || group.chars().any(char::is_control) {
                return invalid("group", "the name of a runner group, 1 to 256 characters");
            }
        }
        Ok(())
    }

    /// Errors that a server of this kind would report; pointers are relative to this object.
    pub fn check_for(&self, kind: SourceKind, pointer: &str) -> Result<()> {
        let invalid = |field: &str, what: String| {
            Err(Error::new(Code::RequestInvalid, format!("{} takes no such runner", kind.title()))
                .field(format!("{pointer}/{field}"), what))
        };
        match kind {
            SourceKind::GitHub => match &self.scope {
                Scope::Instance => invalid(
                    "scope",
                    "expected owner/name, an organisation's login or enterprises/slug: GitHub has no runners for a whole \
                     server"
                        .to_owned(),
                ),
                Scope::Repository { .. } | Scope::Organization(_) | Scope::Enterprise(_) => Ok(()),
            },
            SourceKind::Gitea => {
                if matches!(self.scope, Scope::Enterprise(_)) {
                    return invalid("scope", "expected owner/name, an organisation's name, or `*`".to_owned());
                }
                if self.group.is_some() {
                    return invalid("group", "Gitea has no runner groups".to_owned());
                }
                // The runner reads what follows a colon as the way in which it runs the job.
                match self.labels.iter().find(|label| label.contains(':')) {
                    Some(label) => invalid("labels", format!("a label of a Gitea runner has no colon, found {label:.120?}")),
                    None => Ok(()),
                }
            }
            SourceKind::Buildkite => {
                if matches!(self.scope, Scope::Enterprise(_)) {
                    return invalid("scope", "expected an organisation, organisation/pipeline, or `*`".to_owned());
                }
                if self.group.is_some() {
                    return invalid("group", "Buildkite has no runner groups".to_owned());
                }
                let is_tag = |label: &String| {
                    label.split_once('=').is_some_and(|(key, value)| !key.is_empty() && !value.is_empty() && value != "*")
                };
                if let Some(label) = self.labels.iter().find(|label| !is_tag(label)) {
                    let what = format!("the tags of a Buildkite agent are key=value, found {label:.120?}");
                    return invalid("labels", what);
                }
                match &self.job {
                    Some(RemoteId::Text(job)) if is_uuid(job) => Ok(()),
                    None => Ok(()),
                    Some(job) => {
                        let job = job.to_string();
                        invalid("job", format!("expected the UUID of a job, in lower case, found {job:.60?}"))
                    }
                }
            }
        }
    }

    /// Whether a job that asks for these labels may be given to this runner. GitHub ignores case; the others do not. A rule
    /// `key=*` of Buildkite stands for any value.
    pub fn takes(&self, kind: SourceKind, wanted: &[String]) -> bool {
        let fold = |label: &String| match kind {
            SourceKind::GitHub => label.to_lowercase(),
            SourceKind::Gitea | SourceKind::Buildkite => label.clone(),
        };
        let mine: Vec<String> = self.labels.iter().map(fold).collect();
        wanted.iter().map(fold).all(|label| match label.strip_suffix("=*") {
            Some(key) if kind == SourceKind::Buildkite => {
                mine.iter().any(|tag| tag.split_once('=').is_some_and(|(k, _)| k == key))
            }
            _ => mine.contains(&label),
        })
    }
}

/// In the form in which Buildkite writes them: it is a part of paths, and is compared.
fn is_uuid(text: &str) -> bool {
    uuid::Uuid::try_parse(text).is_ok_and(|uuid| uuid.to_string() == text)
}

/// Largest number of labels that GitHub accepts for one runner; the others have no such limit.
const MAX_LABELS: usize = 100;
const MAX_LABEL: usize = 256;

/// How the runner is registered at its source of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Registration {
    /// Mayfly registers it shortly before the guest needs it, and the guest gets a registration that is good for one job.
    Managed,
    /// The caller brought a just-in-time configuration.
    JitConfig,
    /// The caller brought a registration token; the guest registers itself.
    Token,
}

/// Longest name of a runner at GitHub.
const MAX_RUNNER_NAME: usize = 64;

/// The name of this attempt's runner at its source: a new one for each attempt, because GitHub accepts a name once and
/// other servers do not tell runners with one name apart. The end of the vm's id makes it unique among all hosts that
/// share a server.
pub fn runner_name(vm_name: &str, id: VmId, attempt: u32) -> String {
    let id = id.0.simple().to_string();
    let end = &id[20..];
    let tail = if vm_name.ends_with(end) { format!("-{attempt}") } else { format!("-{end}-{attempt}") };
    // A vm's name is ASCII.
    let kept: String = vm_name.chars().take(MAX_RUNNER_NAME.saturating_sub(tail.len())).collect();
    format!("{kept}{tail}")
}

/// A runner at its source of jobs, with its id and name there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// Null for a runner that registers itself in its guest, with a token of the caller.
    pub runner_id: Option<RemoteId>,
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
    fn what_a_server_would_refuse_is_refused_here() {
        let runner = |scope: &str, labels: &[&str], group: Option<&str>| SourceRunner {
            source: SourceName::github(),
            scope: scope.parse().unwrap(),
            labels: labels.iter().map(|&l| l.to_owned()).collect(),
            group: group.map(str::to_owned),
            registration: Registration::Managed,
            job: None,
        };
        let wrong = |r: SourceRunner| r.check("/runner").unwrap_err().fields[0].pointer.clone();
        assert_eq!(wrong(runner("acme", &[], None)), "/runner/labels");
        assert_eq!(wrong(runner("acme", &["a,b"], None)), "/runner/labels");
        assert_eq!(wrong(runner("acme", &[" a"], None)), "/runner/labels");
        assert_eq!(wrong(runner("acme/app", &["a"], Some("g"))), "/runner/group");
        assert!(runner("acme", &["a"], Some("Big Macs")).check("/runner").is_ok());
        use SourceKind::{Buildkite, GitHub, Gitea};
        let labelled = runner("acme", &["Self-Hosted", "macOS"], None);
        assert!(labelled.takes(GitHub, &["macos".into()]) && !labelled.takes(Gitea, &["macos".into()]));
        assert!(labelled.takes(Gitea, &["macOS".into()]));
        assert!(!runner("acme", &["macos"], None).takes(GitHub, &["macos".into(), "x64".into()]));

        let agent = runner("acme", &["queue=mac", "os=macos"], None);
        assert!(agent.takes(Buildkite, &["queue=mac".into(), "os=*".into()]));
        assert!(!agent.takes(Buildkite, &["arch=*".into()]) && !agent.takes(Buildkite, &["Queue=mac".into()]));

        let of = |r: SourceRunner, kind| r.check_for(kind, "/runner").map_err(|error| error.fields[0].pointer.clone());
        assert_eq!(of(runner("enterprises/acme", &["a"], None), GitHub), Ok(()));
        assert_eq!(of(runner("enterprises/acme", &["a"], None), Gitea), Err("/runner/scope".to_owned()));
        assert_eq!(of(runner("*", &["a"], None), Gitea), Ok(()));
        assert_eq!(of(runner("*", &["a"], None), GitHub), Err("/runner/scope".to_owned()));
        assert_eq!(of(runner("acme", &["a"], Some("g")), Gitea), Err("/runner/group".to_owned()));
        assert_eq!(of(runner("acme", &["a", "ubuntu:host"], None), Gitea), Err("/runner/labels".to_owned()));
        for wrong in ["mac", "=mac", "queue=", "queue=*"] {
            assert_eq!(of(runner("acme", &["queue=mac", wrong], None), Buildkite), Err("/runner/labels".to_owned()));
        }
        for (job, result) in [
            ("0193a6d2-7c1e-4f6a-9b1d-3f5a7c9e1b2d", Ok(())),
            ("0193A6D2-7C1E-4F6A-9B1D-3F5A7C9E1B2D", Err("/runner/job".to_owned())),
            ("../finish", Err("/runner/job".to_owned())),
        ] {
            let with_job = SourceRunner { job: Some(RemoteId::Text(job.into())), ..agent.clone() };
            assert_eq!(of(with_job, Buildkite), result, "{job}");
        }
    }
}
