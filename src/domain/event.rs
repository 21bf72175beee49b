//! Events of vms. The events of a vm, applied in order, give its row: the row holds nothing that is not in an event.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    budgets::{Budget, Budgets},
    endpoint::Endpoint,
    error::{Code, Fault},
    guest::GuestRole,
    ids::{TokenId, VmId},
    job_record::JobRecord,
    queue::QueueReason,
    runner::RunnerFact,
    source_runner::Registered,
    state::State,
    vm_spec::{ResolvedSpec, VmSpec},
};

/// What announced the end of a vm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Announcer {
    /// The job-completed hook in the guest, with the vm's own token.
    Hook,
    /// A client with an admin or create token.
    Admin,
    /// The pool that it was made for: there is no job left for it.
    Pool,
}

/// What proved that the runner has finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum EndProof {
    /// The wrapper in the guest saw the runner program return.
    RunnerFinished,
    /// Mayfly deregistered the idle runner at its CI server: it can get no job any more.
    Deregistered,
    /// The CI server no longer lists the runner, which it had listed before.
    RunnerGone,
    /// The CI server has the result of the job that this runner was given.
    JobCompleted,
}

/// How an instance ended, if Mayfly did not end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::VariantArray)]
#[serde(rename_all = "snake_case")]
pub enum GoneCause {
    GuestPowerOff,
    GuestReset,
    GuestPanic,
    /// The hypervisor gave the guest up: an internal error, a lost network attachment.
    HypervisorError,
    /// A person or program on the host ended the hypervisor with a signal or a command.
    HostStop,
    /// The guest's watchdog device expired, and the hypervisor stopped the guest.
    GuestWatchdog,
    /// Another program on the host paused or suspended the guest.
    HostPause,
    /// The hypervisor paused the guest because the host's disk is full, and no space was freed in time.
    HostDiskFull,
    /// The guest was the first one under an accelerator and did not run there. Later guests are emulated.
    AcceleratorFailed,
    /// The hypervisor ended without a reason (killed, crashed, or it ended while the service was down).
    Unknown,
}

impl GoneCause {
    pub const ALL: &'static [GoneCause] = <GoneCause as strum::VariantArray>::VARIANTS;

    /// What happened, as a clause.
    pub fn describe(self) -> &'static str {
        match self {
            GoneCause::GuestPowerOff => "the guest powered itself off",
            GoneCause::GuestReset => "the guest reset itself; often a kernel panic",
            GoneCause::GuestPanic => "the guest's kernel panicked",
            GoneCause::HypervisorError => "the hypervisor stopped the guest because of an internal error",
            GoneCause::HostStop => "another program on this host ended the hypervisor",
            GoneCause::GuestWatchdog => "the guest's watchdog expired",
            GoneCause::HostPause => "the guest was paused by another program on this host",
            GoneCause::HostDiskFull => "the hypervisor paused the guest because the host's disk is full",
            GoneCause::AcceleratorFailed => {
                "the guest did not run under this host's accelerator, which is not used any more"
            }
            GoneCause::Unknown => "the hypervisor ended and left no reason",
        }
    }

    /// The code of a vm that was lost because of this.
    pub fn code(self) -> Code {
        match self {
            GoneCause::GuestPowerOff | GoneCause::GuestReset | GoneCause::HostStop | GoneCause::Unknown => {
                Code::InstanceLost
            }
            GoneCause::GuestPanic => Code::GuestPanicked,
            GoneCause::HypervisorError => Code::HypervisorFailed,
            GoneCause::GuestWatchdog => Code::GuestWatchdogExpired,
            GoneCause::HostPause => Code::InstancePaused,
            GoneCause::HostDiskFull => Code::HostFull,
            GoneCause::AcceleratorFailed => Code::AcceleratorFailed,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReadyVia {
    SshBanner,
    GuestAgent,
    GuestCall,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, strum::EnumDiscriminants)]
#[serde(tag = "type", rename_all = "snake_case")]
#[strum_discriminants(
    name(EventKind),
    doc = "An event without its payload: what the table looks at.",
    derive(Hash, PartialOrd, Ord, strum::IntoStaticStr, strum::VariantArray),
    strum(serialize_all = "snake_case")
)]
pub enum Event {
    Created {
        #[serde(rename = "draft")]
        spec: Box<VmSpec>,
    },
    QueueReasonChanged {
        reason: QueueReason,
    },
    /// The template of the vm is on this host now.
    TemplateReady {
        spec: ResolvedSpec,
        budgets: Budgets,
    },
    SlotTaken,
    Cloned,
    EndpointFound {
        ssh: Endpoint,
        /// The guest's SSH host key, pinned at first contact (OpenSSH public key format).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host_key: Option<String>,
    },
    GuestReady {
        via: ReadyVia,
    },
    GuestConfigured,
    /// The wrapper in the guest reported how it runs.
    GuestDescribed {
        /// The job's user differs from the wrapper's and cannot become it.
        separate_users: bool,
    },
    /// The template's readiness check succeeded in the guest.
    GuestChecked {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        version: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        state: Option<u32>,
    },
    /// A caller of the API runs a command or a shell in the guest. What it runs is not recorded: commands contain secrets.
    SessionOpened {
        token: TokenId,
        /// The token's name then.
        token_name: String,
    },
    RunnerChanged {
        fact: RunnerFact,
    },
    JobFinished {
        exit_code: i32,
        /// Whose token the report had.
        #[serde(default, skip_serializing_if = "GuestRole::is_default")]
        by: GuestRole,
    },
    EndAnnounced {
        by: Announcer,
    },
    EndProven {
        proof: EndProof,
        exit_code: Option<i32>,
    },
    EndForced {
        by: Announcer,
    },
    InstanceGone {
        cause: GoneCause,
    },
    /// A runner was registered at the CI server for this attempt.
    RunnerRegistered {
        runner: Registered,
    },
    /// An update of a job that this vm's runner was given.
    JobChanged {
        job: JobRecord,
    },
    /// The CI server does not answer, and this vm needs it for its next step: the wait counts against no budget.
    BudgetsPaused,
    BudgetsResumed,
    /// The service was down and could not receive the guest's reports: that time counts against none of the budgets
    /// that end with a report.
    ServiceAway {
        milliseconds: i64,
    },
    /// The host's clock was set, or the host slept: later times are on the new scale, and every budget has as much left
    /// as before. Negative: the clock was set back.
    ClockStepped {
        milliseconds: i64,
    },
    /// The CI server reports the runner as busy: its result is awaited until then, within the cap.
    DrainExtended {
        until: Timestamp,
    },
    BudgetSpent {
        budget: Budget,
    },
    StepFailed {
        fault: Fault,
    },
    AttemptFailed {
        fault: Fault,
    },
    HostRefused {
        fault: Fault,
    },
    GivenUp {
        fault: Fault,
    },
    InstanceStopped,
    InstanceAbsent,
    AttemptCleared {
        reason: QueueReason,
        not_before: Timestamp,
    },
}

impl EventKind {
    pub const ALL: &'static [EventKind] = <EventKind as strum::VariantArray>::VARIANTS;

    /// The name in the event stream and in the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl Event {
    pub fn kind(&self) -> EventKind {
        self.into()
    }
}

/// An event as stored in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Position in the ledger: grows with every event of every vm. Used as the SSE event id.
    pub seq: i64,
    pub vm_id: VmId,
    /// The vm's generation after this event.
    pub generation: i64,
    pub at: Timestamp,
    /// The vm's state after this event.
    pub state: State,
    pub event: Event,
}
