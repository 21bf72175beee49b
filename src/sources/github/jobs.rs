//! Queries runs and jobs, for what webhooks missed. GitHub has no query for the queued jobs of an organisation, so
//! repositories are queried one by one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::{
    GitHubClient, GitHubError, Scope,
    auth::Purpose,
    client::As,
    model::{JobStatus, WorkflowJob},
};

/// One run of a workflow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkflowRun {
    pub id: u64,
    #[serde(default)]
    pub run_attempt: Option<u32>,
    #[serde(default)]
    pub status: Option<JobStatus>,
    #[serde(default)]
    pub created_at: Option<Timestamp>,
}

/// Which jobs of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkflowJobFilter {
    /// Those of its last attempt.
    Latest,
    All,
}

/// Runs that may have queued jobs: a run that has started may still have some.
const UNFINISHED: [&str; 2] = ["queued", "in_progress"];

fn acting(scope: &Scope) -> As<'_> {
    As::For(scope, Purpose::Jobs)
}

impl GitHubClient {
    /// At most a thousand: GitHub returns no more of a filtered list.
    pub async fn runs(&self, repository: &Scope, status: &str) -> Result<Vec<WorkflowRun>, GitHubError> {
        #[derive(Deserialize)]
        struct Page {
            workflow_runs: Vec<WorkflowRun>,
        }
        self.check_repository(repository)?;
        let query = [("status", status.to_owned()), ("per_page", "100".to_owned())];
        let what = format!("the {status} runs of {repository}");
        let call = self.request(Method::GET, repository.path(&["actions", "runs"]), &query, &what);
        let pages: Vec<Page> = self.pages(acting(repository), call).await?;
        Ok(pages.into_iter().flat_map(|page| page.workflow_runs).collect())
    }

    pub async fn jobs_of_run(
        &self,
        repository: &Scope,
        run: u64,
        filter: WorkflowJobFilter,
    ) -> Result<Vec<WorkflowJob>, GitHubError> {
        #[derive(Deserialize)]
        struct Page {
            jobs: Vec<WorkflowJob>,
        }
        self.check_repository(repository)?;
        let filter = match filter {
            WorkflowJobFilter::Latest => "latest",
            WorkflowJobFilter::All => "all",
        };
        let query = [("filter", filter.to_owned()), ("per_page", "100".to_owned())];
        let path = repository.path(&["actions", "runs", &run.to_string(), "jobs"]);
        let call = self.request(Method::GET, path, &query, &format!("the jobs of run {run} in {repository}"));
        let pages: Vec<Page> = self.pages(acting(repository), call).await?;
        Ok(pages.into_iter().flat_map(|page| page.jobs).collect())
    }

    /// `None`: the job does not exist, or the repository is not visible.
    pub async fn job(&self, repository: &Scope, id: u64) -> Result<Option<WorkflowJob>, GitHubError> {
        self.check_repository(repository)?;
        let path = repository.path(&["actions", "jobs", &id.to_string()]);
        let mut call = self.request(Method::GET, path, &[], &format!("the job {id} of {repository}"));
        match self.page(acting(repository), &mut call).await {
            Ok((job, _)) => Ok(Some(job)),
            Err(GitHubError::NotVisible { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The queued jobs of a repository, oldest first.
    pub async fn queued_jobs(&self, repository: &Scope) -> Result<Vec<WorkflowJob>, GitHubError> {
        // The earlier state is queried first, so a run that changes between the two queries is seen twice, not
        // missed.
        let mut queued = BTreeMap::new();
        let mut asked = std::collections::HashSet::new();
        for status in UNFINISHED {
            for run in self.runs(repository, status).await? {
                if !asked.insert(run.id) {
                    continue;
                }
                for job in self.jobs_of_run(repository, run.id, WorkflowJobFilter::Latest).await? {
                    if job.status == JobStatus::Queued {
                        queued.insert(job.id, job);
                    }
                }
            }
        }
        Ok(queued.into_values().collect())
    }

    fn check_repository(&self, scope: &Scope) -> Result<(), GitHubError> {
        match scope {
            Scope::Repository { .. } => Ok(()),
            _ => {
                Err(GitHubError::Settings { what: format!("jobs can be queried only by repository, not for {scope}") })
            }
        }
    }
}
