//! Answers of the stacks API.

use std::collections::BTreeMap;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(super) struct ScheduledJobs {
    pub jobs: Vec<ScheduledJob>,
    pub cluster_queue: ClusterQueue,
    pub page_info: PageInfo,
}

/// Nested objects are always there; each of their values may be null.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ScheduledJob {
    pub id: String,
    pub agent_query_rules: Option<Vec<String>>,
    pub pipeline: ScheduledPipeline,
    pub build: ScheduledBuild,
    pub step: ScheduledStep,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ScheduledPipeline {
    pub slug: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ScheduledBuild {
    pub number: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct ScheduledStep {
    pub key: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct ClusterQueue {
    /// As the documents name it.
    dispatch_paused: Option<bool>,
    /// As the vendor's Go client names it.
    paused: Option<bool>,
}

impl ClusterQueue {
    /// `None`: the answer does not say it.
    pub fn is_paused(&self) -> Option<bool> {
        match (self.dispatch_paused, self.paused) {
            (None, None) => None,
            (documented, other) => Some(documented == Some(true) || other == Some(true)),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct PageInfo {
    pub has_next_page: bool,
    pub end_cursor: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Reservations {
    pub reserved: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct JobStates {
    pub states: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Notified {
    /// Those that were not accepted.
    #[serde(default)]
    pub errors: Vec<NotificationError>,
}

#[derive(Debug, Deserialize)]
pub(super) struct NotificationError {
    pub error: String,
    pub indexes: Vec<usize>,
}

/// Has secrets: no `Debug`.
#[derive(Deserialize)]
pub(super) struct AcquisitionTokens {
    pub job_acquisition_tokens: Vec<AcquisitionToken>,
}

#[derive(Deserialize)]
pub(super) struct AcquisitionToken {
    pub job_uuid: String,
    pub job_acquisition_token: secrecy::SecretString,
}

/// What a state of a job means here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JobPhase {
    /// It waits for other jobs, or for its concurrency group.
    Held,
    /// It waits for an agent.
    Waits,
    /// An agent has it.
    Working,
    /// With the result, as far as the state shows it.
    Over(Option<&'static str>),
}

impl JobPhase {
    /// `None`: the state is not known to this program.
    pub fn of(state: &str) -> Option<JobPhase> {
        Some(match state {
            "pending" | "waiting" | "blocked" | "unblocked" | "limiting" | "limited" | "platform_limiting"
            | "platform_limited" => JobPhase::Held,
            "scheduled" | "reserved" => JobPhase::Waits,
            "assigned" | "accepted" | "running" | "canceling" | "timing_out" => JobPhase::Working,
            "finished" => JobPhase::Over(None),
            "canceled" => JobPhase::Over(Some("cancelled")),
            "timed_out" => JobPhase::Over(Some("timed_out")),
            "expired" => JobPhase::Over(Some("expired")),
            "skipped" => JobPhase::Over(Some("skipped")),
            "broken" | "waiting_failed" | "blocked_failed" | "unblocked_failed" => JobPhase::Over(Some("failure")),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_seen_under_either_name_and_its_absence_is_noticed() {
        let paused = |text: &str| serde_json::from_str::<ClusterQueue>(text).unwrap().is_paused();
        assert_eq!(paused(r#"{"id": "q", "dispatch_paused": true}"#), Some(true));
        assert_eq!(paused(r#"{"id": "q", "paused": true}"#), Some(true));
        assert_eq!(paused(r#"{"dispatch_paused": false, "paused": true}"#), Some(true));
        assert_eq!(paused(r#"{"dispatch_paused": false}"#), Some(false));
        assert_eq!(paused(r#"{"id": "q"}"#), None);
    }
}
