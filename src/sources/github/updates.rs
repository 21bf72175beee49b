//! Turns GitHub's jobs, from webhooks and from queries, into updates.

use serde::Deserialize;

use super::model;
use crate::{
    domain::{
        Scope, SourceName,
        job::{JobUpdate, UpdateSource},
        job_record::{JobRecord, JobStatus},
    },
    sources::deliveries::{FoundJob, ParsedDelivery},
};

#[derive(Deserialize)]
struct Payload {
    action: String,
    workflow_job: model::WorkflowJob,
    repository: Repository,
}

#[derive(Deserialize)]
struct Repository {
    full_name: String,
}

/// A job that a query for queued jobs returned.
pub fn queued_update(source: &SourceName, job: model::WorkflowJob, repository: &str) -> JobUpdate {
    update_of(source, job, repository, JobStatus::Queued, UpdateSource::Poll)
}

/// A job that a query for this job returned.
pub fn found(source: &SourceName, job: model::WorkflowJob, repository: &str) -> FoundJob {
    match status_of(&job.status) {
        Some(status) => FoundJob::Here(Box::new(update_of(source, job, repository, status, UpdateSource::Poll))),
        None => FoundJob::Unclear,
    }
}

/// Reads a webhook of the event `workflow_job`.
pub fn read_delivery(source: &SourceName, body: &[u8]) -> ParsedDelivery {
    let payload: Payload = match serde_json::from_slice(body) {
        Ok(payload) => payload,
        Err(error) => return ParsedDelivery::Refused(format!("not a workflow_job as it is known here: {error}")),
    };
    if let Err(error) = Scope::repository(&payload.repository.full_name) {
        return ParsedDelivery::Refused(format!("not a repository: {error}"));
    }
    let status = match (payload.action.as_str(), &payload.workflow_job.status) {
        // A job that an environment's protection rule holds back is reported as queued all the same.
        ("queued", model::JobStatus::Waiting) | ("waiting", _) => JobStatus::Waiting,
        ("queued", _) => JobStatus::Queued,
        // The status may still be `queued` in that event.
        ("in_progress", _) => JobStatus::InProgress,
        ("completed", _) => JobStatus::Completed,
        (other, _) => return ParsedDelivery::Ignored(format!("the action {other:.50?} is not known here")),
    };
    let Payload { workflow_job, repository, .. } = payload;
    let update = update_of(source, workflow_job, &repository.full_name, status, UpdateSource::Webhook);
    ParsedDelivery::Update(Box::new(update))
}

fn update_of(
    source: &SourceName,
    job: model::WorkflowJob,
    repository: &str,
    status: JobStatus,
    heard: UpdateSource,
) -> JobUpdate {
    JobUpdate {
        record: JobRecord {
            source: source.clone(),
            id: job.id.into(),
            repository: repository.to_owned(),
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
        source: heard,
        missing: false,
    }
}

/// `None`: an unknown status.
fn status_of(status: &model::JobStatus) -> Option<JobStatus> {
    match status {
        model::JobStatus::Queued => Some(JobStatus::Queued),
        model::JobStatus::InProgress => Some(JobStatus::InProgress),
        model::JobStatus::Completed => Some(JobStatus::Completed),
        model::JobStatus::Waiting => Some(JobStatus::Waiting),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn payload(action: &str, status: &str, more: Value) -> Vec<u8> {
        let mut payload = json!({
            "action": action,
            "workflow_job": {
                "id": 9001, "run_id": 7001, "run_attempt": 2, "name": "build", "workflow_name": "ci", "status": status,
                "conclusion": null, "labels": ["self-hosted", "macos-15"], "runner_id": null, "runner_name": null,
                "started_at": "2026-01-01T12:00:00Z",
            },
            "repository": {"full_name": "acme/app"},
            "what_comes_next": 1,
        });
        for (key, value) in more.as_object().unwrap() {
            payload["workflow_job"][key] = value.clone();
        }
        serde_json::to_vec(&payload).unwrap()
    }

    fn status(action: &str, status: &str) -> Option<JobStatus> {
        match read_delivery(&SourceName::github(), &payload(action, status, json!({}))) {
            ParsedDelivery::Update(update) => Some(update.record.status),
            ParsedDelivery::Ignored(_) | ParsedDelivery::Refused(_) => None,
        }
    }

    #[test]
    fn the_action_says_where_the_job_stands() {
        assert_eq!(status("queued", "queued"), Some(JobStatus::Queued));
        assert_eq!(status("queued", "waiting"), Some(JobStatus::Waiting));
        assert_eq!(status("waiting", "waiting"), Some(JobStatus::Waiting));
        assert_eq!(status("in_progress", "queued"), Some(JobStatus::InProgress));
        assert_eq!(status("completed", "completed"), Some(JobStatus::Completed));
        assert!(matches!(
            read_delivery(&SourceName::github(), &payload("postponed", "queued", json!({}))),
            ParsedDelivery::Ignored(_)
        ));
        assert!(matches!(read_delivery(&SourceName::github(), b"{\"action\":\"queued\"}"), ParsedDelivery::Refused(_)));
        for id in [json!("9001"), json!(-1), json!(u64::MAX)] {
            assert!(matches!(
                read_delivery(&SourceName::github(), &payload("queued", "queued", json!({"id": id}))),
                ParsedDelivery::Refused(_)
            ));
        }
    }

    #[test]
    fn an_empty_runner_name_is_no_runner() {
        for (id, name) in [(json!(null), json!(null)), (json!(0), json!(""))] {
            let body = payload(
                "completed",
                "completed",
                json!({"runner_id": id, "runner_name": name, "conclusion": "cancelled"}),
            );
            let ParsedDelivery::Update(update) = read_delivery(&SourceName::github(), &body) else { panic!("refused") };
            assert_eq!((update.runner_name, update.record.conclusion.as_deref()), (None, Some("cancelled")));
            assert_eq!((update.record.run_attempt, update.record.repository.as_str()), (2, "acme/app"));
        }
    }
}
