//! Pulls as operations, and watches of tags.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BudgetsPatch, Code, Error, Fault, Handover, NetworkMode, PullId, Result, VmId, ready_check::ReadyCheck};

/// The state of a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PullState {
    /// The image is being downloaded, or a retry is due after a temporary failure.
    Pulling,
    /// A vm of the new version runs its test; the name has not moved yet.
    Testing,
    /// The image is a template of this host, under its name.
    Done,
    Failed,
    Cancelled,
}

impl PullState {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn is_ended(self) -> bool {
        match self {
            PullState::Pulling | PullState::Testing => false,
            PullState::Done | PullState::Failed | PullState::Cancelled => true,
        }
    }
}

/// The test of a new version: a script that a vm of it runs before the name moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// A script with its own `#!` line, or text for `sh`. Stored unencrypted, so it must not contain secrets.
    #[schema(example = "xcodebuild -version && brew --version", min_length = 1)]
    pub command: String,
    /// Longest time for the script, counted from the ready guest.
    #[serde(default = "Canary::usual_timeout")]
    #[schema(minimum = 1, maximum = 86400, default = 900)]
    pub timeout_seconds: u32,
}

impl Canary {
    pub const LARGEST_COMMAND: usize = 64 << 10;
    pub const LONGEST_TIMEOUT: u32 = 86_400;

    pub fn usual_timeout() -> u32 {
        900
    }

    /// Pointers are those of a request with a `canary`.
    pub fn check(&self) -> Result<()> {
        let invalid = |field: &str, what: String| {
            Err(Error::new(Code::RequestInvalid, "the test cannot be run").field(format!("/canary/{field}"), what))
        };
        let length = self.command.len();
        if self.command.trim().is_empty() || length > Canary::LARGEST_COMMAND || self.command.contains('\0') {
            return invalid("command", format!("1 to {} bytes of text", Canary::LARGEST_COMMAND));
        }
        if !(1..=Canary::LONGEST_TIMEOUT).contains(&self.timeout_seconds) {
            return invalid("timeout_seconds", format!("1 to {}", Canary::LONGEST_TIMEOUT));
        }
        Ok(())
    }
}

/// The image to pull, and the settings of the future template. Secrets are files; their paths are not secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullSpec {
    /// As in the request.
    pub image: String,
    pub name: String,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub handover: Option<Handover>,
    pub user: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyCheck>,
    pub ssh_key: Option<PathBuf>,
    pub ssh_password: Option<PathBuf>,
    /// Budgets of the request; others are taken from the image.
    pub budgets: BudgetsPatch,
    pub canary: Option<Canary>,
    /// No vm and no person waits for it.
    pub background: bool,
}

/// Progress of a pull.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub chunks_done: u64,
    pub chunks_total: u64,
}

/// One pull: its request and its current state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    pub id: PullId,
    pub spec: PullSpec,
    pub state: PullState,
    /// Grows with every change.
    pub generation: i64,
    /// The version that the name pointed at when the pull was requested.
    pub previous: Option<String>,
    /// Digest of the image, after the reference was resolved: from then on the pull is about this image, even if
    /// the tag moves.
    pub image_digest: Option<String>,
    /// Digest of the template.
    pub digest: Option<String>,
    /// Progress when it was last interrupted, or when it ended.
    pub fetched: FetchProgress,
    /// Consecutive failures.
    pub failures: u32,
    /// The most recent fault, whether or not a retry succeeded.
    pub fault: Option<Fault>,
    /// Time of the next retry.
    pub retry_at: Option<Timestamp>,
    /// No retry after this time.
    pub deadline: Timestamp,
    /// The vm that runs the test.
    pub vm: Option<VmId>,
    /// Downloaded data that was not published was removed.
    pub discarded: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

impl Pull {
    pub fn requested(id: PullId, spec: PullSpec, previous: Option<String>, deadline: Timestamp, at: Timestamp) -> Pull {
        Pull {
            id,
            spec,
            state: PullState::Pulling,
            generation: 1,
            previous,
            image_digest: None,
            digest: None,
            fetched: FetchProgress::default(),
            failures: 0,
            fault: None,
            retry_at: None,
            deadline,
            vm: None,
            discarded: false,
            created_at: at,
            updated_at: at,
            ended_at: None,
        }
    }

    pub fn ended(&mut self, state: PullState, at: Timestamp) {
        self.state = state;
        self.retry_at = None;
        self.ended_at = Some(at);
    }
}

/// A template that follows a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    pub template: String,
    /// With a tag.
    pub image: String,
    pub every_seconds: u32,
    pub canary: Option<Canary>,
    pub created_at: Timestamp,
    /// When the tag was last checked.
    pub looked_at: Option<Timestamp>,
    pub next_look_at: Timestamp,
    /// The image of the tag's last move that led to a pull.
    pub image_digest: Option<String>,
    /// The pull that this started.
    pub pull: Option<PullId>,
    /// Consecutive failed checks.
    pub failures: u32,
    /// Why the last check failed.
    pub fault: Option<Fault>,
}
