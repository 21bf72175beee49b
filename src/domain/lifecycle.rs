//! The transition table: the effect of each event in each state.
//!
//! ```text
//! queued ─▶ cloning ─▶ booting ─▶ configuring ─▶ running ─▶ draining ─▶ stopping ─▶ deleting ─▶ deleted
//!    ▲         │          │            │            │           │                       │
//!    │         └──────────┴────────────┴─ any end ──┴───────────┴──▶ stopping           │
//!    └────────────────────── the attempt failed, another follows ─────────────────────────┘
//! ```
//!
//! A failed vm whose guest is kept for debugging is `kept` before it is `stopping`.
//!
//! States name what is under way, events are facts in the past tense. The function is total and has no wildcard arm:
//! a new state or event does not compile until its effect is defined everywhere. There is no other way to change a
//! state, and no way around the table.

use super::{event::EventKind, state::State};

/// The table's verdict on an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The vm enters this state.
    Move(State),
    /// The vm has ended while its guest runs. It enters `kept` if it failed and its guest is kept for debugging, otherwise
    /// `stopping`; which of them depends on the vm (`Vm::after_end`). A kept vm stays `kept` while that is so.
    End,
    /// Recorded; the vm stays where it is. A note that changes nothing of the vm is treated as `Ignore`.
    Note,
    /// A harmless repetition, or an event that came too late. Nothing is written.
    Ignore,
    /// The event is impossible in this state: an error in Mayfly, never in its caller.
    Refuse(Refusal),
}

/// Why an event is impossible in a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A vm is created once.
    AlreadyCreated,
    /// The event belongs to the wait for a template or a slot.
    NotQueued,
    /// The event belongs to an attempt, and none is under way.
    NoAttempt,
    /// Nothing has requested the end of the instance.
    StopNotRequested,
    /// The instance has not stopped yet.
    NotStopped,
    /// A job may have run in this guest, so no fresh attempt may follow.
    JobMayHaveRun,
    /// The vm has ended.
    Ended,
}

impl Refusal {
    /// The reason as a clause.
    pub fn describe(self) -> &'static str {
        match self {
            Refusal::AlreadyCreated => "a vm is created only once",
            Refusal::NotQueued => "the vm is not queued",
            Refusal::NoAttempt => "no attempt is under way",
            Refusal::StopNotRequested => "the stop of its instance was not requested",
            Refusal::NotStopped => "its instance has not stopped yet",
            Refusal::JobMayHaveRun => "a job may have run in its guest",
            Refusal::Ended => "the vm has ended",
        }
    }
}

use EventKind as E;
use Refusal as R;
use State as S;
use Verdict::{End, Ignore, Move, Note, Refuse};

pub fn decide(state: State, event: EventKind) -> Verdict {
    match state {
        S::Queued => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady => Note,
            E::SlotTaken => Move(S::Cloning),
            E::Cloned | E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::NoAttempt),
            // A late report from the guest of an ended attempt, whose instance is gone.
            E::GuestReady
            | E::GuestConfigured
            | E::GuestDescribed
            | E::GuestChecked
            | E::RunnerChanged
            | E::EndpointFound => Ignore,
            E::JobFinished | E::InstanceGone | E::SessionOpened => Ignore,
            E::EndAnnounced | E::EndProven | E::EndForced => Move(S::Deleted),
            E::BudgetSpent | E::GivenUp => Move(S::Deleted),
            // The template could not be fetched in this try.
            E::StepFailed => Note,
            E::AttemptFailed | E::HostRefused => Refuse(R::NoAttempt),
            // About the runner of an ended attempt.
            E::RunnerRegistered | E::JobChanged | E::DrainExtended => Ignore,
            E::BudgetsPaused | E::BudgetsResumed => Note,
            // It has no guest whose reports could have been missed.
            E::ServiceAway => Ignore,
            E::ClockStepped => Note,
        },
        S::Cloning => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned => Move(S::Booting),
            E::GuestReady
            | E::GuestConfigured
            | E::GuestDescribed
            | E::GuestChecked
            | E::RunnerChanged
            | E::EndpointFound => Ignore,
            E::JobFinished | E::SessionOpened => Ignore,
            E::EndAnnounced | E::EndProven | E::EndForced => Move(S::Stopping),
            E::InstanceGone => Ignore,
            E::BudgetSpent | E::GivenUp | E::AttemptFailed | E::HostRefused => Move(S::Stopping),
            E::StepFailed => Note,
            E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::StopNotRequested),
            // A guest that is provisioned by a seed needs its runner before it is cloned.
            E::RunnerRegistered | E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway => Note,
            E::ClockStepped => Note,
            E::JobChanged | E::DrainExtended => Ignore,
        },
        S::Booting => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned => Ignore,
            E::EndpointFound | E::GuestDescribed | E::GuestChecked => Note,
            E::GuestReady => Move(S::Configuring),
            // A seed configures the guest while it boots, and its first report may be lost: the later report implies
            // the earlier one.
            E::GuestConfigured => Move(S::Running),
            E::RunnerChanged | E::JobFinished => Note,
            // The guest that was logged in to is gone: this one is of the next attempt.
            E::SessionOpened => Ignore,
            E::EndAnnounced => Move(S::Draining),
            E::EndProven => End,
            E::EndForced => Move(S::Stopping),
            E::InstanceGone | E::AttemptFailed | E::HostRefused => Move(S::Stopping),
            E::BudgetSpent | E::GivenUp => End,
            E::StepFailed => Note,
            E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::StopNotRequested),
            E::RunnerRegistered | E::JobChanged | E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway => Note,
            E::ClockStepped => Note,
            E::DrainExtended => Ignore,
        },
        S::Configuring => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady => Ignore,
            E::EndpointFound | E::GuestDescribed | E::GuestChecked => Note,
            E::GuestConfigured => Move(S::Running),
            // The runner may be busy before the report that the guest is configured arrives.
            E::RunnerChanged | E::JobFinished | E::SessionOpened => Note,
            E::EndAnnounced => Move(S::Draining),
            E::EndProven => End,
            E::EndForced => Move(S::Stopping),
            E::InstanceGone | E::AttemptFailed | E::HostRefused => Move(S::Stopping),
            E::BudgetSpent | E::GivenUp => End,
            E::StepFailed => Note,
            E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::StopNotRequested),
            E::RunnerRegistered | E::JobChanged | E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway => Note,
            E::ClockStepped => Note,
            E::DrainExtended => Ignore,
        },
        S::Running => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady | E::GuestConfigured => Ignore,
            E::EndpointFound
            | E::GuestDescribed
            | E::GuestChecked
            | E::RunnerChanged
            | E::JobFinished
            | E::SessionOpened => Note,
            E::EndAnnounced => Move(S::Draining),
            E::EndProven => End,
            E::EndForced | E::InstanceGone => Move(S::Stopping),
            E::BudgetSpent | E::GivenUp => End,
            // A job may have run: this guest is never replaced by another one.
            E::AttemptFailed | E::HostRefused => Refuse(R::JobMayHaveRun),
            E::StepFailed => Note,
            E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::StopNotRequested),
            E::RunnerRegistered | E::JobChanged | E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway => Note,
            E::ClockStepped => Note,
            E::DrainExtended => Ignore,
        },
        S::Draining => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady | E::GuestConfigured => Ignore,
            E::EndpointFound
            | E::GuestDescribed
            | E::GuestChecked
            | E::RunnerChanged
            | E::JobFinished
            | E::SessionOpened => Note,
            E::EndAnnounced => Ignore,
            E::EndProven => End,
            E::EndForced | E::InstanceGone => Move(S::Stopping),
            E::BudgetSpent | E::GivenUp => End,
            E::AttemptFailed | E::HostRefused => Refuse(R::JobMayHaveRun),
            E::StepFailed => Note,
            E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::StopNotRequested),
            E::RunnerRegistered | E::JobChanged => Note,
            E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway | E::DrainExtended => Note,
            E::ClockStepped => Note,
        },
        S::Kept => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady | E::GuestConfigured | E::GuestDescribed | E::GuestChecked => Ignore,
            E::EndpointFound | E::RunnerChanged | E::JobFinished | E::SessionOpened => Note,
            // The vm has ended already: a late report of its guest does not take the guest away from who looks at it.
            E::EndAnnounced | E::EndProven | E::GivenUp => Note,
            E::EndForced | E::InstanceGone => Move(S::Stopping),
            E::BudgetSpent => Move(S::Stopping),
            // The result of its job may show that it did not fail.
            E::JobChanged => End,
            E::AttemptFailed | E::HostRefused => Ignore,
            E::StepFailed => Note,
            E::InstanceStopped | E::InstanceAbsent | E::AttemptCleared => Refuse(R::StopNotRequested),
            E::RunnerRegistered => Note,
            // The time for which it is kept neither waits for GitHub nor for reports.
            E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway | E::DrainExtended => Ignore,
            E::ClockStepped => Note,
        },
        S::Stopping => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady | E::GuestConfigured | E::GuestDescribed | E::GuestChecked | E::EndpointFound => {
                Ignore
            }
            E::SessionOpened => Ignore,
            E::RunnerChanged | E::JobFinished => Note,
            // While an attempt is cleaned up before another one, a request to end the vm is recorded, and there will
            // be no further attempt.
            E::EndAnnounced | E::EndProven | E::EndForced | E::GivenUp => Note,
            E::InstanceStopped | E::InstanceGone => Move(S::Deleting),
            E::BudgetSpent | E::AttemptFailed | E::HostRefused => Ignore,
            E::StepFailed => Note,
            E::InstanceAbsent | E::AttemptCleared => Refuse(R::NotStopped),
            E::RunnerRegistered | E::JobChanged => Note,
            E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway | E::DrainExtended => Ignore,
            // The times of its next events are on the new scale.
            E::ClockStepped => Note,
        },
        S::Deleting => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady | E::GuestConfigured | E::GuestDescribed | E::GuestChecked | E::EndpointFound => {
                Ignore
            }
            E::SessionOpened => Ignore,
            E::RunnerChanged | E::JobFinished => Note,
            E::EndAnnounced | E::EndProven | E::EndForced | E::GivenUp => Note,
            E::InstanceStopped | E::InstanceGone => Ignore,
            E::InstanceAbsent => Move(S::Deleted),
            E::AttemptCleared => Move(S::Queued),
            E::BudgetSpent | E::AttemptFailed | E::HostRefused => Ignore,
            E::StepFailed => Note,
            E::RunnerRegistered | E::JobChanged => Note,
            E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway | E::DrainExtended => Ignore,
            // The times of its next events are on the new scale.
            E::ClockStepped => Note,
        },
        S::Deleted => match event {
            E::Created => Refuse(R::AlreadyCreated),
            E::QueueReasonChanged | E::TemplateReady | E::SlotTaken => Refuse(R::NotQueued),
            E::Cloned | E::GuestReady | E::GuestConfigured | E::GuestDescribed | E::GuestChecked | E::EndpointFound => {
                Ignore
            }
            E::RunnerChanged | E::JobFinished | E::SessionOpened => Ignore,
            E::EndAnnounced | E::EndProven | E::EndForced | E::GivenUp => Ignore,
            E::InstanceStopped | E::InstanceGone | E::InstanceAbsent => Ignore,
            E::BudgetSpent | E::AttemptFailed | E::HostRefused | E::StepFailed => Ignore,
            E::AttemptCleared => Refuse(R::Ended),
            E::RunnerRegistered | E::BudgetsPaused | E::BudgetsResumed | E::ServiceAway | E::DrainExtended => Ignore,
            E::ClockStepped => Ignore,
            // The result of its job comes from GitHub, and may arrive after the cleanup.
            E::JobChanged => Note,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_back_only_when_the_driver_says_the_instance_is_gone() {
        for state in State::ALL.iter().copied().filter(|s| s.holds_slot()) {
            for &event in EventKind::ALL {
                if let Move(to) = decide(state, event)
                    && !to.holds_slot()
                {
                    assert_eq!(state, S::Deleting, "{state} × {event:?}");
                    assert!(matches!(event, E::InstanceAbsent | E::AttemptCleared), "{state} × {event:?}");
                }
            }
        }
    }

    #[test]
    fn a_slot_is_taken_by_one_event_only() {
        for &event in EventKind::ALL {
            if let Move(to) = decide(S::Queued, event) {
                assert_eq!(to.holds_slot(), event == E::SlotTaken);
            }
        }
    }

    #[test]
    fn deleted_is_the_only_terminal_state() {
        for &state in State::ALL {
            let leaves = EventKind::ALL.iter().any(|e| matches!(decide(state, *e), Move(_) | End));
            assert_eq!(leaves, state != S::Deleted, "{state}");
        }
    }

    /// `End` leads to `kept` or `stopping`, which both hold the slot.
    #[test]
    fn only_a_vm_with_a_guest_is_kept() {
        for &state in State::ALL {
            for &event in EventKind::ALL {
                if decide(state, event) == End {
                    assert!(state.holds_slot() && state != S::Cloning, "{state} × {event:?}");
                }
                assert_ne!(decide(state, event), Move(S::Kept), "{state} × {event:?}");
            }
        }
        for event in [E::EndForced, E::InstanceGone, E::BudgetSpent] {
            assert_eq!(decide(S::Kept, event), Move(S::Stopping), "{event:?}");
        }
    }

    #[test]
    fn a_forced_end_is_never_refused() {
        for &state in State::ALL {
            for event in [E::EndForced, E::EndAnnounced, E::EndProven] {
                assert!(!matches!(decide(state, event), Refuse(_)), "{state} × {event:?}");
            }
        }
    }
}
