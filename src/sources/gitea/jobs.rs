//! Queries jobs, for what webhooks missed: Gitea delivers each webhook once.

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::{
    client::GiteaClient,
    model::{AttemptRule, GiteaApiJob, GiteaVersion},
    updates::GiteaJob,
};
use crate::{
    domain::{Scope, job_record::JobStatus},
    sources::error::SourceError,
};

#[derive(Deserialize)]
pub(super) struct GiteaJobPage {
    /// Null if there is none.
    jobs: Option<Vec<GiteaApiJob>>,
    total_count: u64,
}

impl GiteaClient {
    /// The queued jobs of all that runners of this scope serve.
    pub async fn queued_jobs(&self, scope: &Scope) -> Result<Vec<GiteaJob>, SourceError> {
        let rule = self.version().await?.attempt_rule();
        let jobs = self.jobs_with_status(scope, "queued").await?;
        let read = |job: GiteaApiJob| {
            let id = job.id;
            GiteaJob::of(job, rule)
                .ok_or_else(|| self.unparsable("the queued jobs", &format!("job {id} without a repository")))
        };
        let jobs: Vec<GiteaJob> = jobs.into_iter().map(read).collect::<Result<_, _>>()?;
        // The list is older than its answer, and a job may have been taken meanwhile.
        Ok(jobs.into_iter().filter(|job| job.status() == JobStatus::Queued).collect())
    }

    /// `None`: the job does not exist, or the repository is not visible.
    pub async fn job(&self, repository: &Scope, id: u64) -> Result<Option<GiteaJob>, SourceError> {
        let rule = self.version().await?.attempt_rule();
        let path = repository.path(&["actions", "jobs", &id.to_string()]);
        let call = self.request(Method::GET, &path, &[], format!("the job {id} of {repository}"));
        let answer = self.send(&call).await?;
        match answer.status {
            StatusCode::OK => {
                let job: GiteaApiJob = self.parsed(&call, &answer)?;
                let found = GiteaJob::of(job, rule);
                found.map(Some).ok_or_else(|| self.unparsable(&call.what, "a status or an address that is not known"))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.refused(&call, &answer)),
        }
    }

    /// The ids of the runners that have a job of this scope.
    pub(super) async fn working_runners(&self, scope: &Scope) -> Result<Vec<u64>, SourceError> {
        let jobs = self.jobs_with_status(scope, "in_progress").await?;
        Ok(jobs.into_iter().filter_map(|job| job.runner_id).collect())
    }

    /// How this server numbers attempts, as far as it was asked for its version: every query for jobs asks first.
    pub fn attempt_rule(&self) -> AttemptRule {
        self.version.read().as_ref().map_or(AttemptRule::CountsTaken, GiteaVersion::attempt_rule)
    }

    /// The version of the server, which is asked for once.
    pub async fn version(&self) -> Result<GiteaVersion, SourceError> {
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        if let Some(version) = self.version.read().clone() {
            return Ok(version);
        }
        let call = self.request(Method::GET, &["version".to_owned()], &[], "the version of the server".to_owned());
        let Version { version } = self.get(&call).await?;
        let version = GiteaVersion::new(version);
        *self.version.write() = Some(version.clone());
        Ok(version)
    }

    async fn jobs_with_status(&self, scope: &Scope, status: &str) -> Result<Vec<GiteaApiJob>, SourceError> {
        let path = scope.path(&["actions", "jobs"]);
        let what = format!("the {status} jobs of {scope}");
        let entries = |page: GiteaJobPage| (page.jobs.unwrap_or_default(), page.total_count);
        self.list(&path, &[("status", status.to_owned())], &what, entries, |job| job.id).await
    }
}
