//! News from stored webhooks.

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::{JobSource, Told};
use crate::{
    domain::{
        Result, Scope,
        github::{JobRecord, JobStatus},
        job::{DeliveryResult, Heard, News},
    },
    service::Service,
    sources::github::model,
};

/// Taken up at once: few enough to let others write in between.
const BATCH: u32 = 64;

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

/// What a delivery turned out to be.
#[derive(Debug)]
enum Read {
    News(Box<News>),
    Ignored(String),
    Refused(String),
}

/// Works the rows that `POST /webhooks/github` wrote, in the order in which they came.
pub struct Deliveries;

impl JobSource for Deliveries {
    fn name(&self) -> &'static str {
        "webhooks"
    }

    fn listen<'a>(&'a mut self, service: &'a Service) -> BoxFuture<'a, Result<Vec<Told>>> {
        Box::pin(async move {
            loop {
                let pending = service.reader.pending_deliveries(BATCH).await?;
                if pending.is_empty() {
                    service.job_board.delivered.notified().await;
                    continue;
                }
                let mut told = Vec::new();
                for delivery in pending {
                    match read(&delivery.body) {
                        Read::News(news) => told.push(Told { receipt: Some(delivery.seq), news: *news }),
                        Read::Ignored(why) => {
                            worked(service, delivery.seq, DeliveryResult::Ignored, Some(why)).await?;
                        }
                        Read::Refused(why) => {
                            tracing::warn!(delivery.guid = delivery.guid, why, "a webhook could not be understood");
                            worked(service, delivery.seq, DeliveryResult::Refused, Some(why)).await?;
                        }
                    }
                }
                if !told.is_empty() {
                    return Ok(told);
                }
            }
        })
    }

    fn written<'a>(&'a mut self, service: &'a Service, told: Told) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            match told.receipt {
                Some(seq) => worked(service, seq, DeliveryResult::Worked, None).await,
                None => Ok(()),
            }
        })
    }
}

async fn worked(service: &Service, seq: i64, result: DeliveryResult, detail: Option<String>) -> Result<()> {
    metrics::counter!("mayfly_webhooks_worked_total", "result" => result.as_str()).increment(1);
    Ok(service.ledger.delivery_worked(seq, result, detail, service.clock.now()).await?)
}

fn read(body: &[u8]) -> Read {
    let payload: Payload = match serde_json::from_slice(body) {
        Ok(payload) => payload,
        Err(error) => return Read::Refused(format!("not a workflow_job as it is known here: {error}")),
    };
    if let Err(error) = Scope::repository(&payload.repository.full_name) {
        return Read::Refused(format!("not a repository: {error}"));
    }
    let status = match (payload.action.as_str(), &payload.workflow_job.status) {
        // Held back by a rule of its environment, and said to be queued all the same.
        ("queued", model::JobStatus::Waiting) | ("waiting", _) => JobStatus::Waiting,
        ("queued", _) => JobStatus::Queued,
        // Its status may still say queued then.
        ("in_progress", _) => JobStatus::InProgress,
        ("completed", _) => JobStatus::Completed,
        (other, _) => return Read::Ignored(format!("the action {other:.50?} is not known here")),
    };
    Read::News(Box::new(news(payload.workflow_job, payload.repository.full_name, status, Heard::Webhook)))
}

pub(super) fn news(job: model::WorkflowJob, repository: String, status: JobStatus, heard: Heard) -> News {
    News {
        record: JobRecord {
            id: job.id,
            repository,
            run_id: job.run_id,
            run_attempt: job.run_attempt.unwrap_or(1),
            name: job.name,
            workflow: job.workflow_name,
            status,
            conclusion: job.conclusion.map(|conclusion| conclusion.as_str().to_owned()),
            url: job.html_url,
            // Set already while the job is queued, when it says nothing.
            started_at: job.started_at.filter(|_| status >= JobStatus::InProgress),
            completed_at: job.completed_at,
        },
        labels: job.labels,
        runner_name: job.runner_name,
        heard,
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
        match read(&payload(action, status, json!({}))) {
            Read::News(news) => Some(news.record.status),
            Read::Ignored(_) | Read::Refused(_) => None,
        }
    }

    #[test]
    fn the_action_says_where_the_job_stands() {
        assert_eq!(status("queued", "queued"), Some(JobStatus::Queued));
        assert_eq!(status("queued", "waiting"), Some(JobStatus::Waiting));
        assert_eq!(status("waiting", "waiting"), Some(JobStatus::Waiting));
        assert_eq!(status("in_progress", "queued"), Some(JobStatus::InProgress));
        assert_eq!(status("completed", "completed"), Some(JobStatus::Completed));
        assert!(matches!(read(&payload("postponed", "queued", json!({}))), Read::Ignored(_)));
        assert!(matches!(read(b"{\"action\":\"queued\"}"), Read::Refused(_)));
        for id in [json!("9001"), json!(-1), json!(u64::MAX)] {
            assert!(matches!(read(&payload("queued", "queued", json!({"id": id}))), Read::Refused(_)));
        }
    }

    #[test]
    fn nobodys_runner_is_nobody() {
        for (id, name) in [(json!(null), json!(null)), (json!(0), json!(""))] {
            let body = payload(
                "completed",
                "completed",
                json!({"runner_id": id, "runner_name": name, "conclusion": "cancelled"}),
            );
            let Read::News(news) = read(&body) else { panic!("refused") };
            assert_eq!((news.runner_name, news.record.conclusion.as_deref()), (None, Some("cancelled")));
            assert_eq!((news.record.run_attempt, news.record.repository.as_str()), (2, "acme/app"));
        }
    }
}
