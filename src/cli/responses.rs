//! The parts of the API's answers that commands show. Lenient on purpose: a newer service may send additional fields
//! and unknown values.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::{output::Colour, text};
use crate::domain::RemoteId;

#[derive(Debug, Deserialize)]
pub(super) struct VmResponse {
    pub id: String,
    pub name: String,
    pub state: String,
    pub generation: i64,
    pub template: String,
    pub template_digest: Option<String>,
    pub driver: Option<String>,
    pub os: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub network: Option<String>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub pool: Option<String>,
    pub created_by: Option<String>,
    pub runner: Option<RunnerResponse>,
    pub queue: Option<QueueResponse>,
    pub deadline: Option<DeadlineResponse>,
    pub paused_since: Option<Timestamp>,
    #[serde(default)]
    pub attempt: u32,
    pub ready: Option<ReadyResponse>,
    pub ssh: Option<EndpointView>,
    pub announced_by: Option<String>,
    pub announced_at: Option<Timestamp>,
    pub end_signal: Option<String>,
    pub outcome: Option<OutcomeView>,
    pub job: Option<JobResponse>,
    #[serde(default)]
    pub jobs: Vec<JobRecordView>,
    pub last_fault: Option<FaultResponse>,
    #[serde(default)]
    pub timeline: Vec<StateEntryView>,
    pub created_at: Timestamp,
    pub deleted_at: Option<Timestamp>,
}

/// The success of a readiness check.
#[derive(Debug, Deserialize)]
pub(super) struct ReadyResponse {
    #[serde(default)]
    pub check: String,
    pub version: Option<String>,
    pub state: Option<u32>,
    #[serde(default)]
    pub seconds: f64,
}

impl ReadyResponse {
    /// `guest-daemon after 6.4 s, version 0.100.1`.
    pub fn text(&self) -> String {
        let mut text = format!("{} after {:.1} s", self.check, self.seconds);
        if let Some(version) = &self.version {
            text.push_str(&format!(", version {version}"));
        }
        if let Some(state) = self.state {
            let name = match state {
                1 => " (offline)",
                2 => " (idle)",
                3 => " (preparing)",
                4 => " (running)",
                5 => " (finished)",
                _ => "",
            };
            text.push_str(&format!(", runner state {state}{name}"));
        }
        text
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct RunnerResponse {
    pub kind: String,
    #[serde(default)]
    pub status: String,
    pub separate_users: Option<bool>,
    pub github: Option<SourceRunnerResponse>,
    pub gitea: Option<SourceRunnerResponse>,
    pub buildkite: Option<SourceRunnerResponse>,
}

#[derive(Debug, Deserialize)]
pub(super) struct SourceRunnerResponse {
    #[serde(default)]
    pub source: String,
    pub scope: String,
    #[serde(default)]
    pub labels: Vec<String>,
    pub group: Option<String>,
    #[serde(default)]
    pub registration: String,
    pub name: Option<String>,
    pub id: Option<RemoteId>,
}

/// A job as its source reports it.
#[derive(Debug, Deserialize)]
pub(super) struct JobRecordView {
    pub id: RemoteId,
    #[serde(default)]
    pub repository: String,
    #[serde(default)]
    pub run_id: u64,
    #[serde(default)]
    pub run_attempt: u32,
    #[serde(default)]
    pub name: String,
    pub workflow: Option<String>,
    #[serde(default)]
    pub status: String,
    pub conclusion: Option<String>,
    pub url: Option<String>,
}

impl JobRecordView {
    /// `completed, success`, `in progress`.
    pub fn stands(&self) -> String {
        let status = self.status.replace('_', " ");
        self.conclusion.as_ref().map_or(status.clone(), |conclusion| format!("{status}, {conclusion}"))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct PoolResponse {
    pub name: String,
    #[serde(default)]
    pub source: String,
    #[serde(default)]
    pub template: String,
    #[serde(default)]
    pub job_source: String,
    #[serde(default)]
    pub scope: String,
    #[serde(default)]
    pub labels: Vec<String>,
    pub group: Option<String>,
    #[serde(default)]
    pub repositories: Vec<String>,
    #[serde(default)]
    pub max_vms: u32,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub network: Option<String>,
    #[serde(default)]
    pub budgets: BTreeMap<String, Option<u32>>,
    pub enabled: bool,
    #[serde(default)]
    pub vms: PoolVmsResponse,
    #[serde(default)]
    pub jobs_waiting: u32,
    pub last_error: Option<FaultResponse>,
    pub updated_at: Option<Timestamp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PoolVmsResponse {
    pub queued: u32,
    pub live: u32,
}

#[derive(Debug, Deserialize)]
pub(super) struct QueueResponse {
    pub reason: String,
    pub position: Option<i64>,
    pub deadline: Option<Timestamp>,
    #[serde(default)]
    pub kept_vms: i64,
    pub pull: Option<ProgressResponse>,
}

#[derive(Debug, Deserialize)]
pub(super) struct DeadlineResponse {
    pub budget: String,
    pub at: Timestamp,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum EndpointView {
    Address { host: String, port: u16 },
    Socket { socket: String },
}

impl EndpointView {
    pub fn text(&self) -> String {
        match self {
            EndpointView::Address { host, port } => format!("{host} port {port}"),
            EndpointView::Socket { socket } => format!("socket {socket}"),
        }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct OutcomeView {
    pub result: String,
    pub code: Option<String>,
    pub detail: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct JobResponse {
    pub exit_code: Option<i32>,
    pub reported_by: Option<String>,
    #[serde(default)]
    pub results_differ: bool,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct FaultResponse {
    pub code: String,
    #[serde(default)]
    pub detail: String,
    pub at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct StateEntryView {
    pub state: String,
    pub at: Timestamp,
}

impl VmResponse {
    pub fn is_deleted(&self) -> bool {
        self.state == "deleted"
    }

    pub fn has_been(&self, state: &str) -> bool {
        self.state == state || self.timeline.iter().any(|e| e.state == state)
    }

    pub fn job_exit_code(&self) -> Option<i32> {
        self.job.as_ref().and_then(|j| j.exit_code)
    }

    /// How the job failed of a vm that itself did what it was made for. `None`: the job did not fail, or nothing is known of
    /// it, or the vm did not complete.
    pub fn job_failure(&self) -> Option<String> {
        self.outcome.as_ref().filter(|outcome| outcome.result == "completed")?;
        match self.job_exit_code() {
            Some(code) if code != 0 => Some(format!("exit code {code}")),
            _ => {
                let conclusion = self.jobs.last()?.conclusion.as_deref()?;
                let failed = matches!(conclusion, "failure" | "timed_out" | "cancelled" | "startup_failure");
                failed.then(|| format!("the CI system reports {}", conclusion.replace('_', " ")))
            }
        }
    }

    /// How it ended, in a few words: `completed, exit code 0`, `failed, exit code 7`, `guest.not_ready`. `None`: it has not.
    pub fn ending(&self) -> Option<String> {
        let outcome = self.outcome.as_ref()?;
        Some(match (self.job_failure(), &outcome.code, self.job_exit_code()) {
            (Some(how), _, _) => format!("failed, {how}"),
            (None, Some(code), _) => code.clone(),
            (None, None, Some(code)) => format!("{}, exit code {code}", outcome.result),
            (None, None, None) => outcome.result.clone(),
        })
    }

    /// The same with everything that is known.
    pub fn whole_ending(&self) -> Option<String> {
        let outcome = self.outcome.as_ref()?;
        Some(match self.job_failure() {
            Some(how) => format!("failed, {how}"),
            None => outcome.text(),
        })
    }

    /// For a vm that has ended: whether it completed, and its job, if any, did not fail.
    pub fn ended_well(&self) -> bool {
        self.outcome.as_ref().is_some_and(|outcome| outcome.result == "completed") && self.job_failure().is_none()
    }

    /// The colour in which its end is shown.
    pub fn ending_colour(&self) -> Option<Colour> {
        let outcome = self.outcome.as_ref()?;
        Some(match outcome.result.as_str() {
            "cancelled" => Colour::Dim,
            _ if self.ended_well() => Colour::Green,
            _ => Colour::Red,
        })
    }
}

impl VmResponse {
    /// The state, and what a kept vm waits for.
    pub fn state_text(&self) -> String {
        match (self.state.as_str(), &self.deadline) {
            ("kept", Some(deadline)) => format!(
                "kept until {} because it failed; `mayfly vm ssh {1}` looks into it, `mayfly vm delete {1}` ends it",
                text::time(deadline.at),
                self.name
            ),
            _ => self.state.clone(),
        }
    }
}

impl QueueResponse {
    /// What deserves a new line: a change of reason or position, or another tenth of a pull.
    pub fn stage(&self) -> (String, Option<i64>, Option<u64>) {
        (self.reason.clone(), self.position, self.pull.as_ref().and_then(|pull| Some(pull.percent()? / 10)))
    }

    /// `waits for a slot, position 3`.
    pub fn text(&self) -> String {
        let reason = match self.reason.as_str() {
            "template" => "waits for its template",
            "slot" => "waits for a slot",
            "host" => "waits for the host",
            "backoff" => "waits before the next attempt",
            other => other,
        };
        let pulled = self.pull.as_ref().map(ProgressResponse::text).unwrap_or_default();
        let position = self.position.map(|position| format!(", position {position}")).unwrap_or_default();
        let kept = match self.kept_vms {
            0 => String::new(),
            1 => "; a failed vm that is kept holds a slot".to_owned(),
            kept => format!("; {kept} failed vms that are kept hold slots"),
        };
        format!("{reason}{pulled}{position}{kept}")
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
pub(super) struct TemplateResponse {
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
    pub network: Option<String>,
    pub ready: Option<Value>,
    #[serde(default)]
    pub own_budgets: BTreeMap<String, Option<u32>>,
    pub created_at: Option<Timestamp>,
    #[serde(default)]
    pub names: Vec<String>,
    pub since: Option<Timestamp>,
    pub why: Option<String>,
    #[serde(default)]
    pub previous: Vec<VersionView>,
    pub pin: Option<PinResponse>,
    pub last_used_at: Option<Timestamp>,
    pub verified_at: Option<Timestamp>,
    pub damage: Option<DamageResponse>,
}

#[derive(Debug, Deserialize)]
pub(super) struct VersionView {
    pub digest: String,
    pub since: Option<Timestamp>,
    pub why: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PinResponse {
    pub why: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct DamageResponse {
    pub faults: Vec<FileFaultView>,
}

#[derive(Debug, Deserialize)]
pub(super) struct FileFaultView {
    pub file: String,
    pub offset: u64,
    pub bytes: u64,
    pub what: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct PullResponse {
    pub id: String,
    #[serde(default)]
    pub image: String,
    #[serde(default)]
    pub name: String,
    pub state: String,
    #[serde(default)]
    pub generation: i64,
    pub digest: Option<String>,
    #[serde(default)]
    pub progress: ProgressResponse,
    pub error: Option<FaultResponse>,
    #[serde(default)]
    pub failures: u32,
    pub retry_at: Option<Timestamp>,
    #[serde(default)]
    pub discarded: bool,
    pub created_at: Timestamp,
}

impl PullResponse {
    pub fn is_ended(&self) -> bool {
        matches!(self.state.as_str(), "done" | "failed" | "cancelled")
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ProgressResponse {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub bytes_per_second: Option<u64>,
    pub eta_seconds: Option<u64>,
}

impl ProgressResponse {
    /// ` (42 %, 3m05s left)`, or nothing while nothing is known.
    fn text(&self) -> String {
        let left = |eta: u64| text::duration(jiff::SignedDuration::from_secs(i64::try_from(eta).unwrap_or(i64::MAX)));
        match (self.percent(), self.eta_seconds) {
            (Some(percent), Some(eta)) => format!(" ({percent} %, {} left)", left(eta)),
            (Some(percent), None) => format!(" ({percent} %)"),
            (None, _) => String::new(),
        }
    }

    /// `None`: the size is not known yet.
    pub fn percent(&self) -> Option<u64> {
        let done = u128::from(self.bytes_done.min(self.bytes_total)) * 100;
        let percent = done.checked_div(u128::from(self.bytes_total))?;
        u64::try_from(percent).ok()
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct WatchResponse {
    pub image: String,
    #[serde(default)]
    pub every_seconds: u32,
    pub canary: Option<serde_json::Value>,
    pub looked_at: Option<Timestamp>,
    pub error: Option<FaultResponse>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LoginResponse {
    pub registry: String,
    #[serde(default)]
    pub username: String,
    #[serde(default)]
    pub source: String,
    pub saved_at: Option<Timestamp>,
}

#[derive(Debug, Deserialize)]
pub(super) struct TokenResponse {
    pub id: String,
    pub name: String,
    pub scope: String,
    pub created_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub expires_at: Option<Timestamp>,
    pub last_used_at: Option<Timestamp>,
    /// Shown as the service names them, so that a limit of a newer service is not left out.
    pub limits: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
pub(super) struct ListedJobView {
    pub id: RemoteId,
    #[serde(default)]
    pub source: String,
    pub given_up: Option<String>,
    #[serde(default)]
    pub repository: String,
    #[serde(default)]
    pub name: String,
    #[serde(default)]
    pub status: String,
    pub conclusion: Option<String>,
    pub workflow: Option<String>,
    #[serde(default)]
    pub labels: Vec<String>,
    pub runner_name: Option<String>,
    pub pool: Option<String>,
    pub vm_id: Option<String>,
    pub made_vm_id: Option<String>,
    pub seen_at: Option<Timestamp>,
}

#[derive(Deserialize)]
pub(super) struct DeliveryResponse {
    pub guid: String,
    #[serde(default)]
    pub event: String,
    pub action: Option<String>,
    #[serde(default)]
    pub result: String,
    pub detail: Option<String>,
    pub received_at: Option<Timestamp>,
}
