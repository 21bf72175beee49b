//! Jobs of CI systems.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    auth::{Allowed, Read},
    extract::{Query, page_size},
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::{
    domain::{
        SourceName, VmId,
        job::{Job, UpdateSource},
        job_record::{JobRecord, JobStatus},
    },
    service::jobs::JobFilter,
};

/// A job of a CI system.
#[derive(Serialize, ToSchema)]
#[schema(as = Job)]
pub struct JobView {
    #[serde(flatten)]
    record: JobRecord,
    /// The labels that it asks for.
    labels: Vec<String>,
    /// The pool that it matches; null if it matches none.
    pool: Option<String>,
    /// The vm whose runner has it.
    #[schema(value_type = Option<String>, format = "uuid")]
    vm_id: Option<VmId>,
    /// The last vm that was made for it. Its source may have given the job to another one.
    #[schema(value_type = Option<String>, format = "uuid")]
    made_vm_id: Option<VmId>,
    runner_name: Option<String>,
    /// How many vms were made for it.
    tries: u32,
    /// How many of the last ones in a row ended without any job.
    failed_vms: u32,
    /// Why no other vm is made for it; null while there may be one.
    given_up: Option<String>,
    /// No other vm is made for it before this time.
    not_before: Option<Time>,
    /// How it was first reported.
    heard: UpdateSource,
    seen_at: Time,
    updated_at: Time,
}

impl From<Job> for JobView {
    fn from(job: Job) -> Self {
        let status = job.status();
        let given_up = job.is_given_up().then(|| {
            format!(
                "the last {} vms that were made for it ended without a job; `last_error` of its pool says why. Repair the \
                 cause, then cancel the job and run it again",
                job.failed_vms
            )
        });
        Self {
            record: JobRecord { status, ..job.record },
            labels: job.labels,
            pool: job.pool,
            vm_id: job.vm,
            made_vm_id: job.created_vm,
            runner_name: job.runner_name,
            tries: job.tries,
            failed_vms: job.failed_vms,
            given_up,
            not_before: job.not_before.map(Time),
            heard: job.first_heard,
            seen_at: job.seen_at.into(),
            updated_at: job.updated_at.into(),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct JobPage {
    /// Newest first, by when they were first reported.
    items: Vec<JobView>,
    /// Pass it as `cursor` to get the next page; null on the last page.
    next_cursor: Option<String>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListJobs {
    /// Only these states; repeatable.
    #[serde(default)]
    #[param(explode)]
    status: Vec<JobStatus>,
    /// Only jobs of this source.
    #[param(value_type = Option<String>, min_length = 1)]
    source: Option<SourceName>,
    /// Only jobs that match this pool.
    #[param(min_length = 1)]
    pool: Option<String>,
    /// `next_cursor` of the previous page.
    #[param(pattern = "^[0-9]{1,19}$")]
    cursor: Option<String>,
    /// Largest number of jobs in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List jobs
///
/// The jobs that webhooks or the poll reported, whether or not they match a pool. Completed jobs are kept for a
/// week.
#[utoipa::path(
    get, path = "/jobs", tag = "jobs", params(ListJobs),
    responses((status = 200, description = "One page", body = JobPage, example = json!(examples::jobs()))),
    security(("token" = ["read"])),
)]
pub async fn list_jobs(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Query(asked): Query<ListJobs>,
) -> Result<Answer<JobPage>, Problem> {
    let limit = page_size(asked.limit)?;
    let cursor = |text: String| {
        let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        number.ok_or_else(|| Problem::invalid("query:cursor", "not a cursor of this listing"))
    };
    let before = asked.cursor.map(cursor).transpose()?;
    let ListJobs { status: statuses, source, pool, .. } = asked;
    let filter = JobFilter { statuses, source, pool, before, limit: limit + 1 };
    let mut jobs = http.services.jobs.list(&filter).await?;
    let more = jobs.len() > limit as usize;
    jobs.truncate(limit as usize);
    let next_cursor = jobs.last().filter(|_| more).map(|row| row.seq.to_string());
    Ok(Answer(JobPage { items: jobs.into_iter().map(|row| row.job.into()).collect(), next_cursor }))
}
