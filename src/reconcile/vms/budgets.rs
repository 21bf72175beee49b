//! Decides which event follows when a budget of a vm is spent. All such decisions are made here.
//!
//! No spent budget destroys a guest while the CI server may be giving its runner a job: the server is asked to remove the runner
//! first, and refuses if the runner has a job. The exceptions are the lifetime, and a drain budget that is not extended
//! any more. A DELETE with `force` does not ask the server either.

use jiff::{SignedDuration, Timestamp};

use crate::{
    domain::{Announcer, Budget, Event, Fault, RunnerStatus, Vm, runner::RunnerFact},
    platform::Clock,
    reconcile::runners::{Pace, Removal, RunnerRemoval, deregistered},
};

/// The drain budget of a busy vm is extended when less than this is left.
const NEAR: SignedDuration = SignedDuration::from_secs(30);
const DRAIN_EXTENSION: SignedDuration = SignedDuration::from_secs(60);

/// Extends a nearly spent drain budget: the CI server removes a runner for one job together with the job's result, so while
/// the runner is registered, its job is not done. `busy`: the server reports that the runner has a job.
pub(in crate::reconcile) fn drain_extension(vm: &Vm, busy: bool, now: Timestamp) -> Option<Event> {
    let at_work = busy || vm.runner_status == RunnerStatus::Busy;
    match vm.deadline() {
        Some((Budget::Drain, at)) if at_work && at < now + NEAR => {
            Some(Event::DrainExtended { until: now + DRAIN_EXTENSION })
        }
        _ => None,
    }
}

pub(in crate::reconcile) struct SpentBudgets {
    removal: RunnerRemoval,
    clock: Clock,
    pace: Pace,
}

impl SpentBudgets {
    pub fn new(removal: RunnerRemoval, clock: Clock, pace: Pace) -> Self {
        Self { removal, clock, pace }
    }

    /// The event that follows from this spent budget. If the CI server has to be asked but cannot be reached, it is asked
    /// until it answers.
    pub async fn spent(&self, vm: &Vm, budget: Budget) -> Event {
        let mut pause = self.pace.first_retry;
        loop {
            let removal = match budget {
                // The server is not asked: there is no guest yet (queue, clone), the vm must end anyway (lifetime), it has no
                // managed runner (unobserved), it has ended already (keep on failure), or `silent` has asked (heartbeat).
                Budget::Queue
                | Budget::Clone
                | Budget::Lifetime
                | Budget::Heartbeat
                | Budget::Unobserved
                | Budget::KeepOnFailure => Removal::Gone,
                Budget::Boot | Budget::Configure | Budget::Registration | Budget::Idle | Budget::Drain => {
                    self.removal.remove(vm).await
                }
            };
            let longer = vm.drain_cap() > self.clock.now();
            match (budget, removal) {
                (Budget::Drain, Removal::Gone) => {
                    return match vm.announced_by {
                        Some(Announcer::Admin | Announcer::Pool) if vm.spec.managed().is_some() => deregistered(),
                        Some(_) | None => Event::BudgetSpent { budget },
                    };
                }
                (Budget::Drain, Removal::Busy) if longer => return self.extension(),
                // While the server cannot be reached, the runner cannot upload its result, and an idle runner may have
                // been given a job.
                (Budget::Drain, Removal::Unknown)
                    if longer
                        && (vm.runner_status == RunnerStatus::Busy || vm.announced_by == Some(Announcer::Pool)) =>
                {
                    return self.extension();
                }
                (Budget::Drain, Removal::Busy | Removal::Unknown) => return Event::BudgetSpent { budget },
                (Budget::Boot | Budget::Configure, Removal::Busy) => return Event::GuestConfigured,
                (Budget::Clone | Budget::Boot | Budget::Configure, Removal::Gone) => {
                    return self.attempt_spent(vm, budget);
                }
                (
                    Budget::Queue
                    | Budget::Registration
                    | Budget::Idle
                    | Budget::Unobserved
                    | Budget::Lifetime
                    | Budget::Heartbeat
                    | Budget::KeepOnFailure,
                    Removal::Gone,
                ) => {
                    return Event::BudgetSpent { budget };
                }
                (_, Removal::Busy) => return Event::RunnerChanged { fact: RunnerFact::JobStarted },
                (_, Removal::Unknown) => {}
            }
            tokio::time::sleep(pause).await;
            pause = self.pace.longer(pause);
        }
    }

    /// The event for a vm whose wrapper is silent. `None` while the CI server reports that its runner has a job, or does not
    /// answer: only the way to this host may be broken.
    pub async fn silent(&self, vm: &Vm) -> Option<Event> {
        match self.removal.remove(vm).await {
            Removal::Gone => Some(Event::BudgetSpent { budget: Budget::Heartbeat }),
            Removal::Busy | Removal::Unknown => None,
        }
    }

    fn extension(&self) -> Event {
        Event::DrainExtended { until: self.clock.now() + DRAIN_EXTENSION }
    }

    fn attempt_spent(&self, vm: &Vm, budget: Budget) -> Event {
        let Some((_, code)) = budget.end() else { return Event::BudgetSpent { budget } };
        let detail = match &vm.last_fault {
            Some(fault) if fault.at >= vm.entered_at => format!("{}; last: {}", code.title(), fault.detail),
            _ => code.title().to_owned(),
        };
        vm.attempt_failed(Fault { code, detail, at: self.clock.now() })
    }
}
