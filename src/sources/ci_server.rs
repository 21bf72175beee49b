//! One CI server with the credentials for it, of whatever kind.

use std::sync::Arc;

use super::{
    deliveries::FoundJob,
    error::{SourceError, SourceErrorKind},
    gitea::GiteaClient,
    github::{self, DEFAULT_GROUP, GitHubClient, NewRunner},
    runner::{NewRegistration, Removed, ServerRunner},
};
use crate::domain::{
    Scope, SourceKind, SourceName,
    job::{JobUpdate, UpdateSource},
    source_runner::SourceRunner,
};

/// The client of one kind of server.
#[derive(Clone, Debug)]
pub enum CiClient {
    GitHub(Arc<GitHubClient>),
    Gitea(Arc<GiteaClient>),
}

/// What one query for queued jobs covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueUnit {
    /// The server lists the jobs of one repository.
    Repository,
    /// The server lists the jobs of everything that runners of a scope serve.
    Scope,
}

/// A server whose runners and jobs are handled. Cheap to clone.
#[derive(Clone, Debug)]
pub struct CiServer {
    name: SourceName,
    client: CiClient,
}

impl CiServer {
    pub fn new(name: SourceName, client: CiClient) -> Self {
        Self { name, client }
    }

    pub fn name(&self) -> &SourceName {
        &self.name
    }

    pub fn client(&self) -> &CiClient {
        &self.client
    }

    pub fn kind(&self) -> SourceKind {
        match &self.client {
            CiClient::GitHub(_) => SourceKind::GitHub,
            CiClient::Gitea(_) => SourceKind::Gitea,
        }
    }

    /// Registers a runner that takes one job. Never repeated by itself: if the answer is lost
    /// ([`SourceError::maybe_done`]), there may be a runner with this name.
    pub async fn register(&self, runner: &SourceRunner, name: &str) -> Result<NewRegistration, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => {
                let group = match &runner.group {
                    None => DEFAULT_GROUP,
                    Some(group) => client.runner_group_id(&runner.scope, group).await?.ok_or_else(|| {
                        let detail =
                            format!("{} has no runner group {group:?} that these credentials may see", runner.scope);
                        SourceError::new(SourceKind::GitHub, SourceErrorKind::Refused, detail)
                    })?,
                };
                let labels = runner.labels.clone();
                let new = NewRunner { name: name.to_owned(), group, labels, work_folder: None };
                let made = client.generate_jit_config(&runner.scope, &new).await?;
                Ok(NewRegistration { runner_id: made.runner.id, secret: made.encoded_jit_config })
            }
            CiClient::Gitea(client) => client.register(&runner.scope, name, &runner.labels).await,
        }
    }

    /// `None`: the runner is gone. Returned only while the scope itself is visible.
    pub async fn runner(&self, scope: &Scope, id: u64) -> Result<Option<ServerRunner>, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(client.get_runner(scope, id).await?.map(Into::into)),
            CiClient::Gitea(client) => client.runner(scope, id).await,
        }
    }

    /// All runners of the scope with exactly this name: some servers allow several.
    pub async fn runners_named(&self, scope: &Scope, name: &str) -> Result<Vec<ServerRunner>, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => {
                Ok(client.find_runner_by_name(scope, name).await?.map(Into::into).into_iter().collect())
            }
            CiClient::Gitea(client) => client.runners_named(scope, name).await,
        }
    }

    /// Refused with [`SourceErrorKind::RunnerBusy`] while the runner has a job.
    pub async fn delete_runner(&self, scope: &Scope, id: u64) -> Result<Removed, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(client.delete_runner(scope, id).await?),
            CiClient::Gitea(client) => client.delete_runner(scope, id).await,
        }
    }

    /// Whether the runners of the scope are visible.
    pub async fn visible(&self, scope: &Scope) -> Result<(), SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(client.visible(scope).await?),
            CiClient::Gitea(client) => client.visible(scope).await,
        }
    }

    pub fn queue_unit(&self) -> QueueUnit {
        match &self.client {
            CiClient::GitHub(_) => QueueUnit::Repository,
            CiClient::Gitea(_) => QueueUnit::Scope,
        }
    }

    /// The queued jobs of a repository or of a scope, see [`QueueUnit`].
    pub async fn queued_jobs(&self, of: &Scope) -> Result<Vec<JobUpdate>, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => {
                let repository = of.slug();
                let jobs = client.queued_jobs(of).await?;
                Ok(jobs.into_iter().map(|job| github::queued_update(&self.name, job, &repository)).collect())
            }
            CiClient::Gitea(client) => {
                let jobs = client.queued_jobs(of).await?;
                Ok(jobs.into_iter().map(|job| job.update(&self.name, UpdateSource::Poll)).collect())
            }
        }
    }

    /// A job by its id.
    pub async fn job(&self, repository: &Scope, id: u64) -> Result<FoundJob, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(match client.job(repository, id).await? {
                Some(job) => github::found(&self.name, job, &repository.slug()),
                None => FoundJob::Missing,
            }),
            CiClient::Gitea(client) => Ok(match client.job(repository, id).await? {
                Some(job) => FoundJob::Here(Box::new(job.update(&self.name, UpdateSource::Poll))),
                None => FoundJob::Missing,
            }),
        }
    }
}
