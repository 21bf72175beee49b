//! How a vm ended: what told us first, and how it went.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Budget, Code};

/// The first thing that told us that this vm is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndSignal {
    /// The wrapper in the guest saw the runner program return.
    RunnerFinished,
    /// GitHub, which had known the runner, does not know it any more.
    RunnerGone,
    /// GitHub has the result of the runner's job.
    JobCompleted,
    /// The hook's call ended a vm that had nothing left to drain.
    Hook,
    /// There was no job for it any more.
    Pool,
    /// An operator's or a client's DELETE.
    Admin,
    /// The guest powered itself off.
    GuestPowerOff,
    /// The hypervisor ended without our asking and not by the guest's power-off.
    InstanceGone,
    QueueBudget,
    CloneBudget,
    BootBudget,
    ConfigureBudget,
    RegistrationBudget,
    IdleBudget,
    LifetimeBudget,
    DrainBudget,
    /// Every attempt to bring the guest up failed.
    GivenUp,
}

impl From<Budget> for EndSignal {
    fn from(budget: Budget) -> Self {
        match budget {
            Budget::Queue => EndSignal::QueueBudget,
            Budget::Clone => EndSignal::CloneBudget,
            Budget::Boot => EndSignal::BootBudget,
            Budget::Configure => EndSignal::ConfigureBudget,
            Budget::Registration => EndSignal::RegistrationBudget,
            Budget::Idle => EndSignal::IdleBudget,
            Budget::Lifetime => EndSignal::LifetimeBudget,
            Budget::Drain => EndSignal::DrainBudget,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeResult {
    /// The runner did its work and ended. Whether the job was green is the job's business (see `job`).
    Completed,
    /// Somebody ended it before its runner was done.
    Cancelled,
    /// It could not be brought up, or a budget was spent.
    Failed,
    /// The instance vanished under the runner.
    Lost,
}

/// How it went; set once, by the first event that ends the vm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    pub result: OutcomeResult,
    /// Why, for results other than `completed` (and for a `completed` that was never confirmed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
