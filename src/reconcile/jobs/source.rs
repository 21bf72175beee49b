//! Interface of job sources, which report updates of jobs.

use futures_util::future::BoxFuture;

use crate::{
    domain::{
        Result, SourceName,
        job::{JobUpdate, UpdateSource},
        job_record::{JobRecord, JobStatus},
    },
    sources::github::model,
};

/// An update, with the receipt by which its source identifies it.
pub(super) struct ReceivedUpdate {
    pub receipt: Option<i64>,
    pub update: JobUpdate,
}

/// The consumer of updates does not depend on the kind of source.
pub(super) trait JobSource: Send {
    fn name(&self) -> &'static str;

    /// Waits for updates. Updates that were returned but not confirmed with `applied` are returned again.
    fn listen(&mut self) -> BoxFuture<'_, Result<Vec<ReceivedUpdate>>>;

    /// Confirms that the update was applied.
    fn applied(&mut self, received: ReceivedUpdate) -> BoxFuture<'_, Result<()>>;
}

pub(super) fn update_of(
    from: SourceName,
    job: model::WorkflowJob,
    repository: String,
    status: JobStatus,
    source: UpdateSource,
) -> JobUpdate {
    JobUpdate {
        record: JobRecord {
            source: from,
            id: job.id,
            repository,
            run_id: job.run_id,
            run_attempt: job.run_attempt.unwrap_or(1),
            name: job.name,
            workflow: job.workflow_name,
            status,
            conclusion: job.conclusion.map(|conclusion| conclusion.as_str().to_owned()),
            url: job.html_url,
            // GitHub sets the field already while the job is queued, when it has no meaning.
            started_at: job.started_at.filter(|_| status >= JobStatus::InProgress),
            completed_at: job.completed_at,
        },
        labels: job.labels,
        runner_name: job.runner_name,
        source,
        missing: false,
    }
}

/// `None`: an unknown status.
pub(super) fn status_of(status: &model::JobStatus) -> Option<JobStatus> {
    match status {
        model::JobStatus::Queued => Some(JobStatus::Queued),
        model::JobStatus::InProgress => Some(JobStatus::InProgress),
        model::JobStatus::Completed => Some(JobStatus::Completed),
        model::JobStatus::Waiting => Some(JobStatus::Waiting),
        _ => None,
    }
}
