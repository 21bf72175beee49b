//! What the commands show of the API's answers. Lenient on purpose: a service newer than this program may say more, and use
//! words that it does not know.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;

#[derive(Debug, Deserialize)]
pub(super) struct VmView {
    pub id: String,
    pub name: String,
    pub state: String,
    pub generation: i64,
    pub template: String,
    #[serde(default)]
    pub template_digest: String,
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub cpus: u32,
    #[serde(default)]
    pub memory_mib: u32,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub runner: Option<RunnerView>,
    pub queue: Option<QueueView>,
    pub deadline: Option<DeadlineView>,
    #[serde(default)]
    pub attempt: u32,
    pub ssh: Option<EndpointView>,
    pub announced_by: Option<String>,
    pub announced_at: Option<Timestamp>,
    pub end_signal: Option<String>,
    pub outcome: Option<OutcomeView>,
    pub job: Option<JobView>,
    pub last_fault: Option<FaultView>,
    #[serde(default)]
    pub timeline: Vec<Entry>,
    pub created_at: Timestamp,
    pub deleted_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RunnerView {
    pub kind: String,
    #[serde(default)]
    pub status: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct QueueView {
    pub reason: String,
    pub position: Option<i64>,
    pub deadline: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeadlineView {
    pub budget: String,
    pub at: Timestamp,
}

#[derive(Debug, Deserialize)]
pub(super) struct EndpointView {
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Deserialize)]
pub(super) struct OutcomeView {
    pub result: String,
    pub code: Option<String>,
    pub detail: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct JobView {
    pub exit_code: Option<i32>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct FaultView {
    pub code: String,
    #[serde(default)]
    pub detail: String,
    pub at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    pub state: String,
    pub at: Timestamp,
}

impl VmView {
    pub fn is_deleted(&self) -> bool {
        self.state == "deleted"
    }

    pub fn has_been(&self, state: &str) -> bool {
        self.state == state || self.timeline.iter().any(|e| e.state == state)
    }

    pub fn job_exit_code(&self) -> Option<i32> {
        self.job.as_ref().and_then(|j| j.exit_code)
    }
}

impl QueueView {
    /// `waits for a slot, position 3`.
    pub fn text(&self) -> String {
        let reason = match self.reason.as_str() {
            "template" => "waits for its template",
            "slot" => "waits for a slot",
            "host" => "waits for the host",
            "backoff" => "waits before the next attempt",
            other => other,
        };
        match self.position {
            Some(position) => format!("{reason}, position {position}"),
            None => reason.to_owned(),
        }
    }
}

impl OutcomeView {
    pub fn text(&self) -> String {
        let mut text = self.result.clone();
        if let Some(code) = &self.code {
            text.push_str(&format!(" [{code}]"));
        }
        if let Some(detail) = &self.detail {
            text.push_str(&format!(": {detail}"));
        }
        text
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct TemplateView {
    pub name: String,
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    pub driver: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub arch: String,
    #[serde(default)]
    pub cpus: u32,
    #[serde(default)]
    pub memory_mib: u32,
    pub size_bytes: Option<u64>,
    pub disk_format: Option<String>,
    pub disk_virtual_bytes: Option<u64>,
    pub handover: Option<String>,
    pub user: Option<String>,
    pub created_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LoginView {
    pub registry: String,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub source: String,
    pub saved_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TokenView {
    pub id: String,
    pub name: String,
    pub scope: String,
    pub created_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}
