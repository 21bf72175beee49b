//! Runners: registering, looking, removing. And the groups they are in.

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
    model::{GitHubApiRunner, or_default},
    runner_group::RunnerGroup,
};

/// The group that every scope has.
pub const DEFAULT_GROUP: u64 = 1;
/// Somebody may rename a group, or make the one that was missed.
const GROUPS_KEPT: SignedDuration = SignedDuration::from_mins(5);

/// A runner to be.
#[derive(Clone, Debug)]
pub struct NewRunner {
    /// Not had before: a name that is taken is refused. At most 64 of letters, digits, dots, dashes and underscores.
    pub name: String,
    pub group: u64,
    /// Exactly these: a runner made this way gets no others, `self-hosted` included.
    pub labels: Vec<String>,
    /// Relative to the runner's directory.
    pub work_folder: Option<String>,
}

/// What a runner starts with. The configuration is a credential, and is shown once.
#[derive(Clone, Debug, Deserialize)]
pub struct JitConfig {
    pub runner: GitHubApiRunner,
    pub encoded_jit_config: SecretString,
}

/// What `config.sh` registers with, or removes: for an hour and for any number of runners.
#[derive(Clone, Debug, Deserialize)]
pub struct RegistrationToken {
    pub token: SecretString,
    pub expires_at: Timestamp,
}

/// Whether a runner that is not there any more was there before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    Now,
    /// It was gone already, which is as good.
    Before,
}

fn acting(scope: &Scope) -> As<'_> {
    As::For(scope, Purpose::Runners)
}

impl GitHubClient {
    /// Registers a runner that takes one job. Never repeated by itself: when the answer is lost
    /// ([`GitHubError::maybe_done`]) there may be a runner with this name, and only a fresh name is sure to work. The one that
    /// was left behind is found by its name and removed.
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
        // One token more changes nothing.
        call.repeatable = true;
        let answer = self.expect(acting(scope), &call, StatusCode::CREATED).await?;
        self.parsed(&call, &answer.body)
    }

    /// Every runner of the scope, ours or not.
    pub async fn list_runners(&self, scope: &Scope) -> Result<Vec<GitHubApiRunner>, GitHubError> {
        self.runners_where(scope, None).await
    }

    pub async fn find_runner_by_name(&self, scope: &Scope, name: &str) -> Result<Option<GitHubApiRunner>, GitHubError> {
        let found = self.runners_where(scope, Some(name)).await?;
        // What the filter does with case and parts of names is GitHub's business; the runner of another is never taken.
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
        // A list that changes while it is read shows some twice.
        let mut seen = std::collections::HashSet::new();
        runners.retain(|runner| seen.insert(runner.id));
        Ok(runners)
    }

    /// `None`: it is gone. That is said only while the scope itself can be seen, because GitHub answers the same when we may
    /// not look any more, and a vm must not be ended for that.
    pub async fn get_runner(&self, scope: &Scope, id: u64) -> Result<Option<GitHubApiRunner>, GitHubError> {
        let path = scope.path(&["actions", "runners", &id.to_string()]);
        let mut call = self.request(Method::GET, path, &[], &format!("the runner {id} of {scope}"));
        match self.page(acting(scope), &mut call).await {
            Ok((runner, _)) => Ok(Some(runner)),
            Err(GitHubError::NotVisible { .. }) => self.visible(scope).await.map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Refused with [`GitHubError::RunnerBusy`] while it has a job; then it stays, and so does its vm. GitHub may believe for
    /// a quarter of an hour that a runner is busy that was killed.
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

    /// Whether the scope's runners can be looked at. Costs nothing as long as nothing changes.
    pub async fn visible(&self, scope: &Scope) -> Result<(), GitHubError> {
        let query = [("per_page", "1".to_owned())];
        let path = scope.path(&["actions", "runners"]);
        let mut call = self.request(Method::GET, path, &query, &format!("the runners of {scope}"));
        self.page::<serde::de::IgnoredAny>(acting(scope), &mut call).await.map(|_| ())
    }

    /// A repository has the default group alone.
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

    /// The id of a group, by the name that people gave it. `None`: there is no such group, or none that we may see.
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
            // One that is not known may have been made since.
            _ => Ok(id_in(&self.runner_groups(scope).await?)),
        }
    }
}
