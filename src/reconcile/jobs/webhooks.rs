//! Job source that reads stored webhooks.

use futures_util::future::BoxFuture;
use serde::Deserialize;

use super::source::{JobSource, ReceivedUpdate, update_of};
use crate::{
    domain::{
        Result, Scope, SourceName,
        job::{DeliveryResult, JobUpdate, UpdateSource},
        job_record::JobStatus,
    },
    parts::Parts,
    platform::Clock,
    sources::github::model,
    store::{Ledger, Reader},
};

/// Deliveries per batch: few enough that other writes are not delayed.
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

/// How a delivery was processed.
#[derive(Debug)]
enum ParsedDelivery {
    Update(Box<JobUpdate>),
    Ignored(String),
    Refused(String),
}

/// Processes the rows that `POST /webhooks/{source}` wrote, in the order in which they came.
pub(super) struct Deliveries {
    ledger: Ledger,
    reader: Reader,
    clock: Clock,
}

impl Deliveries {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, clock, .. } = parts.clone();
        Self { ledger, reader, clock }
    }

    async fn processed(&self, seq: i64, result: DeliveryResult, detail: Option<String>) -> Result<()> {
        metrics::counter!("mayfly_webhooks_worked_total", "result" => result.as_str()).increment(1);
        Ok(self.ledger.delivery_worked(seq, result, detail, self.clock.now()).await?)
    }
}

impl JobSource for Deliveries {
    fn name(&self) -> &'static str {
        "webhooks"
    }

    fn listen(&mut self) -> BoxFuture<'_, Result<Vec<ReceivedUpdate>>> {
        Box::pin(async move {
            loop {
                let pending = self.reader.pending_deliveries(BATCH).await?;
                if pending.is_empty() {
                    self.ledger.changes().delivery_stored().await;
                    continue;
                }
                let mut received = Vec::new();
                for delivery in pending {
                    match read(delivery.source, &delivery.body) {
                        ParsedDelivery::Update(update) => {
                            received.push(ReceivedUpdate { receipt: Some(delivery.seq), update: *update });
                        }
                        ParsedDelivery::Ignored(why) => {
                            self.processed(delivery.seq, DeliveryResult::Ignored, Some(why)).await?;
                        }
                        ParsedDelivery::Refused(why) => {
                            tracing::warn!(delivery.guid = delivery.guid, why, "cannot parse a webhook");
                            self.processed(delivery.seq, DeliveryResult::Refused, Some(why)).await?;
                        }
                    }
                }
                if !received.is_empty() {
                    return Ok(received);
                }
            }
        })
    }

    fn applied(&mut self, received: ReceivedUpdate) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match received.receipt {
                Some(seq) => self.processed(seq, DeliveryResult::Worked, None).await,
                None => Ok(()),
            }
        })
    }
}

fn read(source: SourceName, body: &[u8]) -> ParsedDelivery {
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
    ParsedDelivery::Update(Box::new(update_of(
        source,
        payload.workflow_job,
        payload.repository.full_name,
        status,
        UpdateSource::Webhook,
    )))
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
        match read(SourceName::github(), &payload(action, status, json!({}))) {
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
            read(SourceName::github(), &payload("postponed", "queued", json!({}))),
            ParsedDelivery::Ignored(_)
        ));
        assert!(matches!(read(SourceName::github(), b"{\"action\":\"queued\"}"), ParsedDelivery::Refused(_)));
        for id in [json!("9001"), json!(-1), json!(u64::MAX)] {
            assert!(matches!(
                read(SourceName::github(), &payload("queued", "queued", json!({"id": id}))),
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
            let ParsedDelivery::Update(update) = read(SourceName::github(), &body) else { panic!("refused") };
            assert_eq!((update.runner_name, update.record.conclusion.as_deref()), (None, Some("cancelled")));
            assert_eq!((update.record.run_attempt, update.record.repository.as_str()), (2, "acme/app"));
        }
    }
}
