//! Turns Gitea's jobs, from webhooks and from queries, into updates.

use serde::Deserialize;

use super::model::{AttemptRule, GiteaApiJob};
use crate::{
    domain::{
        Scope, SourceName,
        job::{JobUpdate, UpdateSource},
        job_record::{JobRecord, JobStatus},
    },
    sources::deliveries::ParsedDelivery,
};

/// A job with what is not written in it: its repository, and which attempt it is.
#[derive(Clone, Debug)]
pub struct GiteaJob {
    job: GiteaApiJob,
    repository: String,
    attempt: u32,
    status: JobStatus,
}

#[derive(Deserialize)]
struct GiteaDelivery {
    action: String,
    workflow_job: GiteaApiJob,
    repository: DeliveryRepository,
}

#[derive(Deserialize)]
struct DeliveryRepository {
    full_name: String,
}

impl GiteaJob {
    /// A job of the REST API. `None`: its status is not known, or its address does not name its repository.
    pub(super) fn of(job: GiteaApiJob, rule: AttemptRule) -> Option<GiteaJob> {
        let status = status_of(&job.status)?;
        let repository = repository_of(&job.url)?;
        let attempt = attempt_of(&job, rule);
        Some(GiteaJob { job, repository, attempt, status })
    }

    pub(super) fn status(&self) -> JobStatus {
        self.status
    }

    pub fn update(self, source: &SourceName, heard: UpdateSource) -> JobUpdate {
        let GiteaJob { job, repository, attempt, status } = self;
        JobUpdate {
            record: JobRecord {
                source: source.clone(),
                id: job.id.into(),
                repository,
                run_id: job.run_id,
                run_attempt: attempt,
                name: job.name,
                workflow: None,
                status,
                conclusion: job.conclusion.filter(|_| status == JobStatus::Completed),
                url: job.html_url,
                started_at: job.started_at.filter(|_| status >= JobStatus::InProgress),
                completed_at: job.completed_at,
            },
            labels: job.labels,
            runner_name: job.runner_name,
            source: heard,
            missing: false,
        }
    }
}

/// Reads a webhook of the event `workflow_job`.
pub fn read_delivery(source: &SourceName, rule: AttemptRule, body: &[u8]) -> ParsedDelivery {
    let GiteaDelivery { action, workflow_job, repository } = match serde_json::from_slice(body) {
        Ok(payload) => payload,
        Err(error) => return ParsedDelivery::Refused(format!("not a workflow_job as it is known here: {error}")),
    };
    let repository = repository.full_name;
    if let Err(error) = Scope::repository(&repository) {
        return ParsedDelivery::Refused(format!("not a repository: {error}"));
    }
    let Some(status) = status_of(&action) else {
        return ParsedDelivery::Ignored(format!("the action {action:.50?} is not known here"));
    };
    let attempt = attempt_of(&workflow_job, rule);
    let job = GiteaJob { job: workflow_job, repository, attempt, status };
    ParsedDelivery::Update(Box::new(job.update(source, UpdateSource::Webhook)))
}

/// `None`: an unknown status.
fn status_of(status: &str) -> Option<JobStatus> {
    match status {
        // It waits for other jobs, or for its concurrency group.
        "waiting" | "blocked" => Some(JobStatus::Waiting),
        "queued" => Some(JobStatus::Queued),
        "in_progress" => Some(JobStatus::InProgress),
        "completed" => Some(JobStatus::Completed),
        _ => None,
    }
}

/// Which attempt of the job this is, 1 for the first one.
fn attempt_of(job: &GiteaApiJob, rule: AttemptRule) -> u32 {
    let taken = job.runner_id.is_some() || job.runner_name.is_some();
    match rule {
        // A job that no runner has taken waits for its next attempt, or was cancelled before it.
        AttemptRule::CountsTaken if !taken => job.run_attempt.saturating_add(1),
        AttemptRule::CountsTaken | AttemptRule::OwnRow => job.run_attempt.max(1),
    }
}

/// `owner/name` from the address of a job in the REST API. The server's address before that depends on its settings.
fn repository_of(url: &str) -> Option<String> {
    let (_, rest) = url.split_once("/api/v1/repos/")?;
    let mut parts = rest.split('/');
    let repository = format!("{}/{}", parts.next()?, parts.next()?);
    Scope::repository(&repository).ok()?;
    Some(repository)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn job(status: &str, more: Value) -> Value {
        let mut job = json!({
            "id": 2, "run_id": 2, "run_attempt": 0, "name": "build", "labels": ["mac"], "status": status,
            "url": "https://git.example/api/v1/repos/acme/app/actions/jobs/2",
            "html_url": "https://git.example/acme/app/actions/runs/2/jobs/2",
            "created_at": "2026-11-28T21:19:09Z", "started_at": "1970-01-01T00:00:00Z", "completed_at": "1970-01-01T00:00:00Z",
        });
        for (key, value) in more.as_object().unwrap() {
            job[key] = value.clone();
        }
        job
    }

    fn heard(action: &str, more: Value, rule: AttemptRule) -> JobUpdate {
        let payload = json!({
            "action": action, "workflow_job": job(action, more), "repository": {"id": 1, "full_name": "acme/app"},
        });
        let forge = SourceName::new("forge").unwrap();
        match read_delivery(&forge, rule, &serde_json::to_vec(&payload).unwrap()) {
            ParsedDelivery::Update(update) => *update,
            other => panic!("{other:?}"),
        }
    }

    const TAKEN: fn(u32) -> Value = |attempt| json!({"run_attempt": attempt, "runner_id": 1, "runner_name": "vm-1-1"});

    #[test]
    fn every_event_of_an_attempt_has_its_number() {
        use AttemptRule::{CountsTaken, OwnRow};
        let attempt = |action, more, rule| heard(action, more, rule).record.run_attempt;
        // The first attempt, then a rerun with the same id.
        assert_eq!(attempt("waiting", json!({}), CountsTaken), 1);
        assert_eq!(attempt("queued", json!({}), CountsTaken), 1);
        assert_eq!(attempt("in_progress", TAKEN(1), CountsTaken), 1);
        assert_eq!(attempt("completed", TAKEN(1), CountsTaken), 1);
        assert_eq!(attempt("queued", json!({"run_attempt": 1}), CountsTaken), 2);
        assert_eq!(attempt("in_progress", TAKEN(2), CountsTaken), 2);
        // Cancelled while it waited.
        assert_eq!(attempt("completed", json!({"conclusion": "cancelled"}), CountsTaken), 1);
        assert_eq!(attempt("completed", json!({"run_attempt": 1, "conclusion": "cancelled"}), CountsTaken), 2);
        for (action, more) in
            [("queued", json!({"run_attempt": 2})), ("in_progress", TAKEN(2)), ("completed", TAKEN(2))]
        {
            assert_eq!(attempt(action, more, OwnRow), 2);
        }
        assert_eq!(attempt("queued", json!({}), OwnRow), 1);
    }

    #[test]
    fn a_time_that_is_not_set_is_none() {
        let queued = heard("queued", json!({}), AttemptRule::CountsTaken);
        assert_eq!((queued.record.started_at, queued.record.completed_at), (None, None));
        assert_eq!((queued.record.status, queued.runner_name), (JobStatus::Queued, None));
        let more = json!({"run_attempt": 1, "runner_id": 1, "runner_name": "vm", "started_at": "2026-11-28T21:19:10Z"});
        let taken = heard("in_progress", more, AttemptRule::CountsTaken);
        assert!(taken.record.started_at.is_some() && taken.record.completed_at.is_none());
        assert_eq!(taken.runner_name.as_deref(), Some("vm"));
        assert_eq!(taken.record.url.as_deref(), Some("https://git.example/acme/app/actions/runs/2/jobs/2"));
    }

    #[test]
    fn a_job_of_a_list_names_its_repository() {
        let read = |value: Value| GiteaJob::of(serde_json::from_value(value).unwrap(), AttemptRule::CountsTaken);
        let update =
            read(job("queued", json!({}))).unwrap().update(&SourceName::new("forge").unwrap(), UpdateSource::Poll);
        assert_eq!((update.record.repository.as_str(), update.record.run_attempt), ("acme/app", 1));
        let below = json!({"url": "https://x/git/api/v1/repos/a/b.c/actions/jobs/2"});
        assert_eq!(read(job("queued", below)).unwrap().repository, "a/b.c");
        for wrong in ["", "https://x/api/v1/repos/acme", "https://x/api/v1/repos/acme/../x", "https://x/repos/a/b"] {
            assert!(read(job("queued", json!({"url": wrong}))).is_none(), "{wrong}");
        }
        assert!(read(job("postponed", json!({}))).is_none());
    }
}
