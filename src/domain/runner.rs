//! What a guest runs, and the status of its runner: a second, smaller table beside the lifecycle table.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{network::NetworkMode, source_kind::SourceKind};

/// What the guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum RunnerKind {
    /// One job, with the same hook contract as GitHub's runner: started, job, completed, result upload.
    Command,
    /// A setup script run in the guest; the vm ends when it returns.
    Script,
    /// GitHub's own runner, registered for one job.
    #[serde(rename = "github")]
    #[strum(serialize = "github")]
    GitHub,
    /// Gitea's own runner, registered for one job.
    Gitea,
    /// Buildkite's own agent, for one particular job.
    Buildkite,
    /// No runner: the vm runs until it is deleted or its lifetime is spent.
    None,
}

impl RunnerKind {
    pub const ALL: [RunnerKind; 6] = [
        RunnerKind::Command,
        RunnerKind::Script,
        RunnerKind::GitHub,
        RunnerKind::Gitea,
        RunnerKind::Buildkite,
        RunnerKind::None,
    ];

    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The kind of runner that jobs of such a source need.
    pub fn of(source: SourceKind) -> RunnerKind {
        match source {
            SourceKind::GitHub => RunnerKind::GitHub,
            SourceKind::Gitea => RunnerKind::Gitea,
            SourceKind::Buildkite => RunnerKind::Buildkite,
        }
    }

    /// The kind of source that its runner belongs to.
    pub fn source(self) -> Option<SourceKind> {
        match self {
            RunnerKind::GitHub => Some(SourceKind::GitHub),
            RunnerKind::Gitea => Some(SourceKind::Gitea),
            RunnerKind::Buildkite => Some(SourceKind::Buildkite),
            RunnerKind::Command | RunnerKind::Script | RunnerKind::None => None,
        }
    }

    /// Whether the runner registers with a CI system, so that the registration and idle budgets apply.
    pub fn registers(self) -> bool {
        self.source().is_some()
    }

    /// The strictest network mode in which the runner can work. A command needs the guest API only; a runner reaches
    /// its CI system, and what its jobs download.
    pub fn strictest_network(self) -> NetworkMode {
        match self {
            RunnerKind::Command | RunnerKind::None => NetworkMode::Isolated,
            RunnerKind::GitHub | RunnerKind::Gitea | RunnerKind::Buildkite | RunnerKind::Script => {
                NetworkMode::Internet
            }
        }
    }

    /// The runner's status when the guest was provisioned.
    pub(super) fn when_handed_over(self) -> Option<RunnerFact> {
        match self {
            RunnerKind::Command | RunnerKind::GitHub | RunnerKind::Gitea | RunnerKind::Buildkite => {
                Some(RunnerFact::HandedOver)
            }
            // A script need not report when it has work.
            RunnerKind::Script => Some(RunnerFact::Unobserved),
            RunnerKind::None => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::VariantArray)]
#[serde(rename_all = "snake_case")]
pub enum RunnerStatus {
    /// There is no runner, or not yet.
    None,
    /// The guest was provisioned, and the CI system has not seen the runner yet.
    Registering,
    /// A script runs, and nothing has reported whether it has a job: it may.
    Unknown,
    /// It waits for a job.
    Idle,
    /// It has a job.
    Busy,
    /// The runner program has ended.
    Finished,
    /// Its CI system no longer lists it.
    Gone,
}

/// Facts about the runner, reported by the guest or the CI system, or implied by the kind of runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunnerFact {
    HandedOver,
    /// A script was handed over. Whether it waits for a job is known only if it says so.
    Unobserved,
    /// The guest was allowed to start the runner program, and has started it.
    ProgramStarted,
    Online,
    JobStarted,
    ProgramEnded,
    Deregistered,
}

/// Whether the runner program was started. It decides whether a guest that ended may be replaced by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RunnerStarted {
    /// Certainly not: no guest of this vm was allowed to start it, or there is none.
    No,
    /// The guest was allowed to start it, and no report since shows that it did.
    Maybe,
    Yes,
}

impl RunnerFact {
    /// Whether this fact implies that the runner program was started.
    pub fn shows_a_start(self) -> bool {
        match self {
            RunnerFact::HandedOver | RunnerFact::Unobserved | RunnerFact::Deregistered => false,
            RunnerFact::ProgramStarted | RunnerFact::Online | RunnerFact::JobStarted | RunnerFact::ProgramEnded => true,
        }
    }
}

impl RunnerStatus {
    pub const ALL: &'static [RunnerStatus] = <RunnerStatus as strum::VariantArray>::VARIANTS;

    /// The status after a fact. Facts arrive late and out of order, so a status never moves backwards.
    pub fn after(self, fact: RunnerFact) -> RunnerStatus {
        use RunnerFact as F;
        use RunnerStatus as R;
        match self {
            R::None => match fact {
                F::ProgramStarted => R::None,
                F::HandedOver => R::Registering,
                F::Unobserved => R::Unknown,
                F::Online => R::Idle,
                F::JobStarted => R::Busy,
                F::ProgramEnded => R::Finished,
                F::Deregistered => R::Gone,
            },
            R::Unknown => match fact {
                F::HandedOver | F::Unobserved | F::ProgramStarted => R::Unknown,
                F::Online => R::Idle,
                F::JobStarted => R::Busy,
                F::ProgramEnded => R::Finished,
                F::Deregistered => R::Gone,
            },
            R::Registering => match fact {
                F::HandedOver | F::Unobserved | F::ProgramStarted => R::Registering,
                F::Online => R::Idle,
                F::JobStarted => R::Busy,
                F::ProgramEnded => R::Finished,
                F::Deregistered => R::Gone,
            },
            R::Idle => match fact {
                F::HandedOver | F::Unobserved | F::ProgramStarted | F::Online => R::Idle,
                F::JobStarted => R::Busy,
                F::ProgramEnded => R::Finished,
                F::Deregistered => R::Gone,
            },
            R::Busy => match fact {
                F::HandedOver | F::Unobserved | F::ProgramStarted | F::Online | F::JobStarted => R::Busy,
                F::ProgramEnded => R::Finished,
                F::Deregistered => R::Gone,
            },
            R::Finished => match fact {
                F::HandedOver | F::Unobserved | F::ProgramStarted | F::Online | F::JobStarted | F::ProgramEnded => {
                    R::Finished
                }
                F::Deregistered => R::Gone,
            },
            R::Gone => match fact {
                F::HandedOver
                | F::Unobserved
                | F::ProgramStarted
                | F::Online
                | F::JobStarted
                | F::ProgramEnded
                | F::Deregistered => R::Gone,
            },
        }
    }

    /// Whether ending the vm now could lose the result of a job.
    pub fn may_hold_a_job(self) -> bool {
        matches!(self, RunnerStatus::Busy | RunnerStatus::Unknown)
    }
}
