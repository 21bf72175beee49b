//! Pulls as operations, and templates that follow a tag.

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{BudgetsPatch, Fault, Handover, PullId, VmId};

/// Where a pull stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum PullState {
    /// The image is on its way, or a failure that may pass is waited out.
    Pulling,
    /// A vm of the new version runs its test; the name has not moved yet.
    Testing,
    /// It is a template of this host, under its name.
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

/// A new version's test: a script that a vm made of it runs before the name moves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Canary {
    /// A script with its own `#!` line, or text for `sh`. Kept in clear, so it must hold no secrets.
    #[schema(example = "xcodebuild -version && brew --version", min_length = 1)]
    pub command: String,
    /// Longest time for it, from the guest being ready.
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
}

/// What is pulled, and what the template is to be. Secrets are files; their paths are no secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullSpec {
    /// As it was asked for.
    pub image: String,
    pub name: String,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub handover: Option<Handover>,
    pub user: Option<String>,
    pub ssh_key: Option<PathBuf>,
    pub ssh_password: Option<PathBuf>,
    /// Those that were asked for: of the others, those count that the image names.
    pub budgets: BudgetsPatch,
    pub canary: Option<Canary>,
    /// Nobody waits for it.
    pub background: bool,
}

/// How far a pull is or was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchProgress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub chunks_done: u64,
    pub chunks_total: u64,
}

/// One pull: what was asked for, and what became of it so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    pub id: PullId,
    pub spec: PullSpec,
    pub state: PullState,
    /// Grows with every change.
    pub generation: i64,
    /// What the name pointed at when the pull was asked for.
    pub previous: Option<String>,
    /// Of the image, once it was looked up: from then on the pull is about this one, wherever the tag goes.
    pub image_digest: Option<String>,
    /// Of the template.
    pub digest: Option<String>,
    /// As far as it had come when it was last interrupted, or ended.
    pub fetched: FetchProgress,
    /// Failures in a row.
    pub failures: u32,
    /// What went wrong last, overcome or not.
    pub fault: Option<Fault>,
    /// When it is tried again.
    pub retry_at: Option<Timestamp>,
    /// Failures are not waited out beyond this.
    pub deadline: Timestamp,
    /// The vm that runs the test.
    pub vm: Option<VmId>,
    /// What was fetched and not published was removed.
    pub discarded: bool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub ended_at: Option<Timestamp>,
}

impl Pull {
    pub fn asked_for(id: PullId, spec: PullSpec, previous: Option<String>, deadline: Timestamp, at: Timestamp) -> Pull {
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
    /// When the registry was last asked.
    pub looked_at: Option<Timestamp>,
    pub next_look_at: Timestamp,
    /// The image that the tag last pointed at, when that was acted on.
    pub image_digest: Option<String>,
    /// The pull that this led to.
    pub pull: Option<PullId>,
    /// Looks that failed in a row.
    pub failures: u32,
    /// Why the last look failed.
    pub fault: Option<Fault>,
}
