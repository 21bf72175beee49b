//! One CI server with the credentials for it, of whatever kind.

use std::sync::Arc;

use super::{
    buildkite::BuildkiteClient,
    deliveries::FoundJob,
    error::{SourceError, SourceErrorKind},
    gitea::GiteaClient,
    github::{self, DEFAULT_GROUP, GitHubClient, NewRunner},
    runner::{Claim, NewRegistration, Removed, ServerRunner},
};
use crate::domain::{
    RemoteId, Scope, SourceKind, SourceName,
    job::{Job, JobUpdate, UpdateSource},
    source_runner::SourceRunner,
};

/// The client of one kind of server.
#[derive(Clone, Debug)]
pub enum CiClient {
    GitHub(Arc<GitHubClient>),
    Gitea(Arc<GiteaClient>),
    Buildkite(Arc<BuildkiteClient>),
}

/// What one query for queued jobs covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueUnit {
    /// The server lists the jobs of one repository.
    Repository,
    /// The server lists the jobs of everything that runners of a scope serve.
    Scope,
    /// The server lists all jobs at once.
    Everything,
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
            CiClient::Buildkite(_) => SourceKind::Buildkite,
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
                Ok(NewRegistration { runner_id: made.runner.id.into(), secret: made.encoded_jit_config })
            }
            CiClient::Gitea(client) => client.register(&runner.scope, name, &runner.labels).await,
            CiClient::Buildkite(client) => match &runner.job {
                Some(job) => client.register(&job.to_string()).await,
                None => {
                    let detail = "an agent of Buildkite is for one job, and the request names none";
                    Err(SourceError::new(SourceKind::Buildkite, SourceErrorKind::Settings, detail))
                }
            },
        }
    }

    /// `None`: the runner is gone. Returned only while the scope itself is visible.
    pub async fn runner(&self, scope: &Scope, id: &RemoteId) -> Result<Option<ServerRunner>, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(client.get_runner(scope, self.number(id)?).await?.map(Into::into)),
            CiClient::Gitea(client) => client.runner(scope, self.number(id)?).await,
            CiClient::Buildkite(client) => client.runner(&id.to_string()).await,
        }
    }

    /// All runners of the scope with exactly this name: some servers allow several.
    pub async fn runners_named(&self, scope: &Scope, name: &str) -> Result<Vec<ServerRunner>, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => {
                Ok(client.find_runner_by_name(scope, name).await?.map(Into::into).into_iter().collect())
            }
            CiClient::Gitea(client) => client.runners_named(scope, name).await,
            // A token whose answer was lost was never received, so no agent can register with it.
            CiClient::Buildkite(_) => Ok(Vec::new()),
        }
    }

    /// Refused with [`SourceErrorKind::RunnerBusy`] while the runner has a job.
    pub async fn delete_runner(&self, scope: &Scope, id: &RemoteId) -> Result<Removed, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(client.delete_runner(scope, self.number(id)?).await?),
            CiClient::Gitea(client) => client.delete_runner(scope, self.number(id)?).await,
            CiClient::Buildkite(client) => client.release(&id.to_string()).await,
        }
    }

    /// Whether the runners of the scope are visible.
    pub async fn visible(&self, scope: &Scope) -> Result<(), SourceError> {
        match &self.client {
            CiClient::GitHub(client) => Ok(client.visible(scope).await?),
            CiClient::Gitea(client) => client.visible(scope).await,
            CiClient::Buildkite(client) => client.visible().await,
        }
    }

    pub fn queue_unit(&self) -> QueueUnit {
        match &self.client {
            CiClient::GitHub(_) => QueueUnit::Repository,
            CiClient::Gitea(_) => QueueUnit::Scope,
            CiClient::Buildkite(_) => QueueUnit::Everything,
        }
    }

    /// The queued jobs of a repository, of a scope or of the server, see [`QueueUnit`].
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
            CiClient::Buildkite(client) => {
                let jobs = client.queued_jobs().await?;
                Ok(jobs.into_iter().map(|job| job.update(&self.name)).collect())
            }
        }
    }

    /// What became of jobs that are known here, in their order.
    pub async fn jobs(&self, known: &[&Job]) -> Result<Vec<FoundJob>, SourceError> {
        if let CiClient::Buildkite(client) = &self.client {
            return client.jobs(known).await;
        }
        let mut found = Vec::new();
        for job in known {
            found.push(self.job(job).await?);
        }
        Ok(found)
    }

    /// What became of a job that is known here.
    pub async fn job(&self, known: &Job) -> Result<FoundJob, SourceError> {
        match &self.client {
            CiClient::GitHub(client) => {
                let Some((repository, id)) = job_address(known) else { return Ok(FoundJob::Unclear) };
                let job = client.job(&repository, id).await?;
                Ok(job.map_or(FoundJob::Missing, |job| github::found(&self.name, job, &repository.slug())))
            }
            CiClient::Gitea(client) => {
                let Some((repository, id)) = job_address(known) else { return Ok(FoundJob::Unclear) };
                let job = client.job(&repository, id).await?.map(|job| job.update(&self.name, UpdateSource::Poll));
                Ok(job.map_or(FoundJob::Missing, |job| FoundJob::Here(Box::new(job))))
            }
            CiClient::Buildkite(client) => Ok(client.jobs(&[known]).await?.pop().unwrap_or(FoundJob::Unclear)),
        }
    }

    /// Reserves a job for a vm that is about to be made for it, at a server whose runners are for one particular job.
    pub async fn claim(&self, job: &Job) -> Result<Claim, SourceError> {
        match &self.client {
            CiClient::GitHub(_) | CiClient::Gitea(_) => Ok(Claim::Granted),
            CiClient::Buildkite(client) => client.claim(&job.record.id.to_string()).await,
        }
    }

    /// Prolongs the reservations of jobs whose vms live.
    pub async fn keep_claims(&self, jobs: &[&Job]) -> Result<(), SourceError> {
        match &self.client {
            CiClient::GitHub(_) | CiClient::Gitea(_) => Ok(()),
            CiClient::Buildkite(client) => {
                let ids: Vec<String> = jobs.iter().map(|job| job.record.id.to_string()).collect();
                client.keep_claims(&ids).await
            }
        }
    }

    /// Shows on the pages of jobs what they wait for. Does nothing for servers without such an API.
    pub async fn tell_waits(&self, waits: &[(&Job, &str)]) -> Result<(), SourceError> {
        match &self.client {
            CiClient::GitHub(_) | CiClient::Gitea(_) => Ok(()),
            CiClient::Buildkite(client) => {
                let notes: Vec<(String, &str)> =
                    waits.iter().map(|(job, text)| (job.record.id.to_string(), *text)).collect();
                client.notify(&notes).await
            }
        }
    }

    /// Ends a job for which there can be no vm, with these words for its page. `false`: such a server has no way to do it.
    pub async fn fail_job(&self, job: &Job, detail: &str) -> Result<bool, SourceError> {
        match &self.client {
            CiClient::GitHub(_) | CiClient::Gitea(_) => Ok(false),
            CiClient::Buildkite(client) => client.finish(&job.record.id.to_string(), detail).await.map(|()| true),
        }
    }

    fn number(&self, id: &RemoteId) -> Result<u64, SourceError> {
        id.number().ok_or_else(|| {
            let detail = format!("ids of {} are numbers, found {id}", self.kind().title());
            SourceError::new(self.kind(), SourceErrorKind::Settings, detail)
        })
    }
}

/// Repository and number by which GitHub and Gitea address a job. `None`: the server of the job has no numbers.
fn job_address(job: &Job) -> Option<(Scope, u64)> {
    Some((Scope::repository(&job.record.repository).ok()?, job.record.id.number()?))
}
