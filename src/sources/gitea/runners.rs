//! Registers, queries and removes runners.

use reqwest::{
    Method, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::json;

use super::{
    client::{GiteaCall, GiteaClient},
    model::{GiteaRegistrationToken, GiteaRunner, RegisterAnswer, RunnerFile},
};
use crate::{
    domain::{Scope, SourceKind},
    sources::{
        error::{SourceError, SourceErrorKind},
        runner::{NewRegistration, Removed, ServerRunner},
    },
};

#[derive(Deserialize)]
struct RunnerPage {
    /// Null if there is none.
    runners: Option<Vec<GiteaRunner>>,
    total_count: u64,
}

impl From<GiteaRunner> for ServerRunner {
    fn from(runner: GiteaRunner) -> Self {
        let online = match runner.status.as_str() {
            "online" | "idle" | "active" => Some(true),
            "offline" => Some(false),
            _ => None,
        };
        ServerRunner { id: runner.id.into(), name: runner.name, online, busy: runner.busy }
    }
}

impl GiteaClient {
    /// Registers a runner that takes one job, and returns the content of the file `.runner` for its guest. Gitea's
    /// registration token never expires and registers any number of runners, so it stays here.
    pub async fn register(&self, scope: &Scope, name: &str, labels: &[String]) -> Result<NewRegistration, SourceError> {
        let token = self.registration_token(scope).await?;
        let call = GiteaCall {
            method: Method::POST,
            url: self.options.server.runner_service("Register"),
            headers: HeaderMap::from_iter([(
                reqwest::header::HeaderName::from_static("connect-protocol-version"),
                HeaderValue::from_static("1"),
            )]),
            body: Some(json!({
                "name": name,
                "token": token.expose_secret(),
                "labels": labels,
                "ephemeral": true,
                "version": concat!("mayfly/", env!("CARGO_PKG_VERSION")),
            })),
            what: format!("a new runner in {scope}"),
            // A repetition registers another runner with the same name.
            repeatable: false,
            with_token: false,
        };
        let answer = self.send(&call).await?;
        if answer.status != StatusCode::OK {
            return Err(self.refused(&call, &answer));
        }
        let RegisterAnswer { runner } = self.parsed(&call, &answer)?;
        let file = RunnerFile {
            warning: "",
            id: runner.id,
            uuid: &runner.uuid,
            name: &runner.name,
            token: runner.token.expose_secret(),
            address: &self.options.server.address(),
            labels: labels.iter().map(|label| format!("{label}:host")).collect(),
            ephemeral: true,
        };
        let secret = serde_json::to_string(&file).expect("text and numbers serialise");
        Ok(NewRegistration { runner_id: runner.id.into(), secret: secret.into() })
    }

    /// The token with which runners of the scope register themselves: the same one each time.
    async fn registration_token(&self, scope: &Scope) -> Result<SecretString, SourceError> {
        let path = scope.path(&["actions", "runners", "registration-token"]);
        let mut call = self.request(Method::POST, &path, &[], format!("a registration token of {scope}"));
        call.repeatable = true;
        let answer = self.send(&call).await?;
        match answer.status {
            StatusCode::OK | StatusCode::CREATED => {
                let GiteaRegistrationToken { token } = self.parsed(&call, &answer)?;
                Ok(token)
            }
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// Whether runners of the scope can be registered. Makes its registration token, if there is none yet.
    pub async fn may_register(&self, scope: &Scope) -> Result<(), SourceError> {
        self.registration_token(scope).await.map(drop)
    }

    /// `None`: the runner is gone. Returned only while the scope itself is visible, because Gitea gives the same answer
    /// when access is lost, and a vm must not be ended for that.
    pub async fn runner(&self, scope: &Scope, id: u64) -> Result<Option<ServerRunner>, SourceError> {
        Ok(self.row(scope, id).await?.map(ServerRunner::from))
    }

    /// All runners of the scope with this name: Gitea allows several.
    pub async fn runners_named(&self, scope: &Scope, name: &str) -> Result<Vec<ServerRunner>, SourceError> {
        let path = scope.path(&["actions", "runners"]);
        let entries = |page: RunnerPage| (page.runners.unwrap_or_default(), page.total_count);
        let all = self.list(&path, &[], &format!("the runners of {scope}"), entries, |runner| runner.id).await?;
        Ok(all.into_iter().filter(|runner| runner.name == name).map(ServerRunner::from).collect())
    }

    /// Removes a runner that has no job. Gitea itself removes a working runner, too, and loses its job, so the runner is
    /// disabled first; then no job can come between the look and the removal. What a runner works at is read from the jobs:
    /// `busy` means that the runner reported something in the last seconds.
    pub async fn delete_runner(&self, scope: &Scope, id: u64) -> Result<Removed, SourceError> {
        let busy = || {
            let detail = format!("{}: the runner {id} is running a job", self.options.server.name());
            SourceError::new(SourceKind::Gitea, SourceErrorKind::RunnerBusy, detail)
        };
        let Some(row) = self.row(scope, id).await? else { return Ok(Removed::Before) };
        if row.busy {
            return Err(busy());
        }
        if !row.disabled && self.disable(scope, id).await? {
            tokio::time::sleep(self.options.settle).await;
        }
        if self.working_runners(scope).await?.contains(&id) {
            return Err(busy());
        }
        match self.row(scope, id).await? {
            None => return Ok(Removed::Before),
            Some(row) if row.busy => return Err(busy()),
            Some(_) => {}
        }
        let path = scope.path(&["actions", "runners", &id.to_string()]);
        let call = self.request(Method::DELETE, &path, &[], format!("removing the runner {id} of {scope}"));
        let answer = self.send(&call).await?;
        match answer.status {
            StatusCode::NO_CONTENT | StatusCode::OK => Ok(Removed::Now),
            StatusCode::NOT_FOUND => self.visible(scope).await.map(|()| Removed::Before),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// Whether the runners of the scope are visible.
    pub async fn visible(&self, scope: &Scope) -> Result<(), SourceError> {
        let path = scope.path(&["actions", "runners"]);
        let query = [("page", "1".to_owned()), ("limit", "1".to_owned())];
        let call = self.request(Method::GET, &path, &query, format!("the runners of {scope}"));
        self.get::<RunnerPage>(&call).await.map(drop)
    }

    async fn row(&self, scope: &Scope, id: u64) -> Result<Option<GiteaRunner>, SourceError> {
        let path = scope.path(&["actions", "runners", &id.to_string()]);
        let call = self.request(Method::GET, &path, &[], format!("the runner {id} of {scope}"));
        let answer = self.send(&call).await?;
        match answer.status {
            StatusCode::OK => self.parsed(&call, &answer).map(Some),
            StatusCode::NOT_FOUND => self.visible(scope).await.map(|()| None),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// Makes the server give the runner no more jobs. `false`: the runner is gone, or this server cannot do it (before
    /// Gitea 1.26).
    async fn disable(&self, scope: &Scope, id: u64) -> Result<bool, SourceError> {
        let path = scope.path(&["actions", "runners", &id.to_string()]);
        let mut call = self.request(Method::PATCH, &path, &[], format!("disabling the runner {id} of {scope}"));
        call.body = Some(json!({"disabled": true}));
        let answer = self.send(&call).await?;
        match answer.status {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(self.refused(&call, &answer)),
        }
    }
}
