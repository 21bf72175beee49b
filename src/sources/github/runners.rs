//! Registers, queries and removes runners, and looks up their groups.

use jiff::{SignedDuration, Timestamp};
use reqwest::{Method, StatusCode};
use secrecy::SecretString;
use serde::Deserialize;
use serde_json::json;

use super::{
    GitHubClient, GitHubError, Scope,
    auth::Purpose,
    budget::Class,
    client::As,
    model::{GitHubApiRunner, RunnerStatus, or_default},
    runner_group::RunnerGroup,
};
use crate::sources::runner::{Removed, ServerRunner};

/// The default group of every scope.
pub const DEFAULT_GROUP: u64 = 1;
/// Lifetime of a cached group: groups may be renamed or created.
const GROUPS_KEPT: SignedDuration = SignedDuration::from_mins(5);

/// A runner to be registered.
#[derive(Clone, Debug)]
pub struct NewRunner {
    /// A name in use is refused. At most 64 letters, digits, dots, dashes and underscores.
    pub name: String,
    pub group: u64,
    /// Exactly these: a runner with a just-in-time configuration gets no others, `self-hosted` included.
    pub labels: Vec<String>,
    /// Relative to the runner's directory.
    pub work_folder: Option<String>,
}

/// The configuration of a runner. It is a credential, and GitHub shows it once.
#[derive(Clone, Debug, Deserialize)]
pub struct JitConfig {
    pub runner: GitHubApiRunner,
    pub encoded_jit_config: SecretString,
}

/// The token with which `config.sh` registers or removes runners, valid for an hour.
#[derive(Clone, Debug, Deserialize)]
pub struct RegistrationToken {
    pub token: SecretString,
    pub expires_at: Timestamp,
}

impl From<GitHubApiRunner> for ServerRunner {
    fn from(runner: GitHubApiRunner) -> Self {
        let online = match runner.status {
            RunnerStatus::Online => Some(true),
            RunnerStatus::Offline => Some(false),
            RunnerStatus::Other(_) => None,
        };
        ServerRunner { id: runner.id.into(), name: runner.name, online, busy: runner.busy }
    }
}

fn acting(scope: &Scope) -> As<'_> {
    As::For(scope, Purpose::Runners)
}

impl GitHubClient {
    /// Registers a runner that takes one job. Never repeated by itself: if the answer is lost
    /// ([`GitHubError::maybe_done`]), there may be a runner with this name, and only a fresh name is certain to work.
    /// The orphaned one is found by its name and removed.
    pub async fn generate_jit_config(&self, scope: &Scope, new: &NewRunner) -> Result<JitConfig, GitHubError> {
        let named = !new.name.is_empty()
            && new.name.len() <= 64
            && new.name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        if !named {
            let what = format!(
                "{:?} is no name for a runner: at most 64 letters, digits, dots, dashes and underscores",
                new.name
            );
            return Err(GitHubError::Settings { what });
        }
        if new.labels.is_empty() || new.labels.len() > 100 {
            return Err(GitHubError::Settings {
                what: format!("a runner has 1 to 100 labels, and not {}", new.labels.len()),
            });
        }
        let what = format!("a new runner in {scope}");
        let mut call =
            self.request(Method::POST, scope.path(&["actions", "runners", "generate-jitconfig"]), &[], &what);
        let mut body = json!({"name": new.name, "runner_group_id": new.group, "labels": new.labels});
        if let Some(folder) = &new.work_folder {
            body["work_folder"] = json!(folder);
        }
        call.body = Some(body);
        (call.class, call.secret) = (Class::Registration, true);
        let (_, answer) = self.call(acting(scope), &call).await?;
        match answer.status {
            StatusCode::CREATED => self.parsed(&call, &answer.body),
            StatusCode::CONFLICT => Err(GitHubError::NameTaken { server: self.server(), name: new.name.clone() }),
            // If the runners of the scope are visible, it is the request that the server does not know.
            StatusCode::NOT_FOUND if self.observed().enterprise_version.is_some() => match self.visible(scope).await {
                Ok(()) => Err(GitHubError::Refused {
                    server: self.server(),
                    what,
                    status: answer.status.as_u16(),
                    said: "it shows the runners there, but knows no just-in-time configurations: update the Enterprise Server \
                           (3.10 has them), or pass a `registration_token` with each vm"
                        .to_owned(),
                }),
                Err(error) => Err(error),
            },
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// For runner programs that register themselves: `config.sh --token`.
    pub async fn registration_token(&self, scope: &Scope) -> Result<RegistrationToken, GitHubError> {
        self.runner_token(scope, "registration-token").await
    }

    /// For `config.sh remove --token`.
    pub async fn remove_token(&self, scope: &Scope) -> Result<RegistrationToken, GitHubError> {
        self.runner_token(scope, "remove-token").await
    }

    async fn runner_token(&self, scope: &Scope, kind: &str) -> Result<RegistrationToken, GitHubError> {
        let path = scope.path(&["actions", "runners", kind]);
        let mut call = self.request(Method::POST, path, &[], &format!("a {kind} of {scope}"));
        (call.class, call.secret) = (Class::Registration, true);
        // One more token changes nothing.
        call.repeatable = true;
        let answer = self.expect(acting(scope), &call, StatusCode::CREATED).await?;
        self.parsed(&call, &answer.body)
    }

    /// All runners of the scope, foreign ones included.
    pub async fn list_runners(&self, scope: &Scope) -> Result<Vec<GitHubApiRunner>, GitHubError> {
        self.runners_where(scope, None).await
    }

    pub async fn find_runner_by_name(&self, scope: &Scope, name: &str) -> Result<Option<GitHubApiRunner>, GitHubError> {
        let found = self.runners_where(scope, Some(name)).await?;
        // GitHub does not specify how the filter treats case and parts of names, so the name is compared here: a
        // foreign runner must never be taken.
        Ok(found.into_iter().find(|r| r.name == name))
    }

    async fn runners_where(&self, scope: &Scope, name: Option<&str>) -> Result<Vec<GitHubApiRunner>, GitHubError> {
        #[derive(Deserialize)]
        struct Page {
            runners: Vec<GitHubApiRunner>,
        }
        let mut query = vec![("per_page", "100".to_owned())];
        query.extend(name.map(|name| ("name", name.to_owned())));
        let path = scope.path(&["actions", "runners"]);
        let call = self.request(Method::GET, path, &query, &format!("the runners of {scope}"));
        let pages: Vec<Page> = self.pages(acting(scope), call).await?;
        let mut runners: Vec<GitHubApiRunner> = pages.into_iter().flat_map(|page| page.runners).collect();
        // A list that changes while it is read may show entries twice.
        let mut seen = std::collections::HashSet::new();
        runners.retain(|runner| seen.insert(runner.id));
        Ok(runners)
    }

    /// `None`: the runner is gone. Returned only while the scope itself is visible, because GitHub gives the same
    /// answer when access is lost, and a vm must not be ended for that.
    pub async fn get_runner(&self, scope: &Scope, id: u64) -> Result<Option<GitHubApiRunner>, GitHubError> {
        let path = scope.path(&["actions", "runners", &id.to_string()]);
        let mut call = self.request(Method::GET, path, &[], &format!("the runner {id} of {scope}"));
        match self.page(acting(scope), &mut call).await {
            Ok((runner, _)) => Ok(Some(runner)),
            Err(GitHubError::NotVisible { .. }) => self.visible(scope).await.map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Refused with [`GitHubError::RunnerBusy`] while the runner has a job; then the runner stays, and so does its
    /// vm. GitHub may report a killed runner as busy for 15 minutes.
    pub async fn delete_runner(&self, scope: &Scope, id: u64) -> Result<Removed, GitHubError> {
        let path = scope.path(&["actions", "runners", &id.to_string()]);
        let call = self.request(Method::DELETE, path, &[], &format!("removing the runner {id} of {scope}"));
        let (_, answer) = self.call(acting(scope), &call).await?;
        match answer.status {
            StatusCode::NO_CONTENT => Ok(Removed::Now),
            StatusCode::NOT_FOUND => self.visible(scope).await.map(|()| Removed::Before),
            StatusCode::UNPROCESSABLE_ENTITY => Err(GitHubError::RunnerBusy { server: self.server(), runner: id }),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// Whether the runners of the scope are visible. Costs nothing while nothing changes.
    pub async fn visible(&self, scope: &Scope) -> Result<(), GitHubError> {
        let query = [("per_page", "1".to_owned())];
        let path = scope.path(&["actions", "runners"]);
        let mut call = self.request(Method::GET, path, &query, &format!("the runners of {scope}"));
        self.page::<serde::de::IgnoredAny>(acting(scope), &mut call).await.map(|_| ())
    }

    /// A repository has only the default group.
    pub async fn runner_groups(&self, scope: &Scope) -> Result<Vec<RunnerGroup>, GitHubError> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(deserialize_with = "or_default")]
            runner_groups: Vec<RunnerGroup>,
        }
        if matches!(scope, Scope::Repository { .. }) {
            return Ok(Vec::new());
        }
        let path = scope.path(&["actions", "runner-groups"]);
        let query = [("per_page", "100".to_owned())];
        let call = self.request(Method::GET, path, &query, &format!("the runner groups of {scope}"));
        let pages: Vec<Page> = self.pages(acting(scope), call).await?;
        let groups: Vec<RunnerGroup> = pages.into_iter().flat_map(|page| page.runner_groups).collect();
        let kept = (self.now(), groups.clone());
        self.groups.lock().insert(scope.clone(), kept);
        Ok(groups)
    }

    /// The id of a group by its name. `None`: there is no such group, or it is not visible.
    pub async fn runner_group_id(&self, scope: &Scope, name: &str) -> Result<Option<u64>, GitHubError> {
        if matches!(scope, Scope::Repository { .. }) {
            return Ok(name.eq_ignore_ascii_case("default").then_some(DEFAULT_GROUP));
        }
        let id_in = |groups: &[RunnerGroup]| groups.iter().find(|g| g.name.eq_ignore_ascii_case(name)).map(|g| g.id);
        let kept = {
            let groups = self.groups.lock();
            groups.get(scope).filter(|(at, _)| self.now().duration_since(*at) < GROUPS_KEPT).map(|(_, g)| id_in(g))
        };
        match kept {
            Some(Some(id)) => Ok(Some(id)),
            // An unknown group may have been created since.
            _ => Ok(id_in(&self.runner_groups(scope).await?)),
        }
    }
}
