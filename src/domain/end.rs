//! The end of a vm: what proved it, and its outcome.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::error::Code;

/// The first signal that proved the end of a vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndSignal {
    /// The wrapper in the guest saw the runner program return.
    RunnerFinished,
    /// GitHub no longer lists the runner, which it had listed before.
    RunnerGone,
    /// GitHub has the result of the runner's job.
    JobCompleted,
    /// The hook's DELETE ended a vm that had nothing left to drain.
    Hook,
    /// There was no job left for it.
    Pool,
    /// A DELETE of an operator or a client.
    Admin,
    /// The guest powered itself off.
    GuestPowerOff,
    /// The hypervisor ended although neither Mayfly nor the guest ended it.
    InstanceGone,
    QueueBudget,
    CloneBudget,
    BootBudget,
    ConfigureBudget,
    RegistrationBudget,
    IdleBudget,
    UnobservedBudget,
    LifetimeBudget,
    DrainBudget,
    HeartbeatBudget,
    /// Every attempt to boot the guest failed, or the guest reported that it cannot run the job.
    GivenUp,
}

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr, strum::VariantArray,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum OutcomeResult {
    /// The runner did its work and ended. Whether the job succeeded is in `job`; for a `command` that failed, `code` is
    /// `job.failed`.
    Completed,
    /// It was ended before its runner had finished.
    Cancelled,
    /// It could not be booted, a budget was spent, or its runner failed.
    Failed,
    /// The instance disappeared, or the guest powered off, before the result was known.
    Lost,
}

impl OutcomeResult {
    pub const ALL: &'static [OutcomeResult] = <OutcomeResult as strum::VariantArray>::VARIANTS;

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// How the vm ended; set once, by the first event that ends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    pub result: OutcomeResult,
    /// The reason, for results other than `completed` (and for a `completed` that was never confirmed).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<Code>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}
