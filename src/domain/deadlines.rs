//! What ends a vm if nothing happens: the budget that is spent next, and when. Steps of the clock move all of it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{
    budgets::Budget,
    error::Code,
    event::{Announcer, EndProof},
    runner::{RunnerKind, RunnerStatus},
    state::State,
    vm::{Vm, seconds},
};

/// Longest drain of a script that never reported whether it has a job, in seconds.
pub const UNOBSERVED_DRAIN_SECONDS: u32 = 30;

impl Vm {
    /// The deadline at which the CI server's report that the runner has finished becomes the end of the guest.
    pub fn settle_deadline(&self) -> Option<(EndProof, Timestamp)> {
        let (proof, at) = self.end_proof?;
        let waits = matches!(self.state, State::Booting | State::Configuring | State::Running | State::Draining);
        waits.then(|| (proof, at + seconds(self.spec.budgets.settle_seconds)))
    }

    /// How long the wrapper of this guest may report nothing. `None`: it does not report regularly, or there is nothing to
    /// report.
    pub fn longest_silence(&self) -> Option<Duration> {
        // Wrappers that describe themselves send heartbeats.
        let reports = self.spec.runner != RunnerKind::None && self.separate_users.is_some();
        let works = matches!(self.state, State::Running | State::Draining);
        (reports && works).then(|| Duration::from_secs(self.spec.budgets.heartbeat_seconds.into()))
    }

    /// The next moment at which a budget is spent, and which one it is. Without the heartbeat budget, which is extended by
    /// reports that are not recorded.
    pub fn deadline(&self) -> Option<(Budget, Timestamp)> {
        let b = &self.spec.budgets;
        let away = SignedDuration::from_millis(self.away_ms);
        let since = |budget, limit| Some((budget, self.entered_at + seconds(limit) + away));
        // For a budget that depends on the CI server: paused while that cannot be reached, and extended by that time.
        let waiting = |budget, at: Timestamp| match self.paused_at {
            Some(_) => None,
            None => Some((budget, at + SignedDuration::from_millis(self.paused_ms))),
        };
        match self.state {
            State::Queued => self.queue.as_ref().and_then(|q| waiting(Budget::Queue, q.deadline)),
            State::Cloning => waiting(Budget::Clone, self.entered_at + seconds(b.clone_seconds)),
            State::Booting => since(Budget::Boot, b.boot_seconds),
            State::Configuring => waiting(Budget::Configure, self.entered_at + seconds(b.configure_seconds)),
            State::Running => {
                let lifetime = (Budget::Lifetime, self.lifetime_ends());
                let watched = self.spec.managed().is_some();
                let waits = match (self.spec.runner.registers(), self.runner_status, self.runner_changed_at) {
                    // A runner that the caller registered is not observed, so it is not known when it is online: it
                    // may already be waiting for its job.
                    (true, RunnerStatus::Registering, Some(at)) if !watched => {
                        waiting(Budget::Idle, at + seconds(b.idle_seconds))
                    }
                    (true, RunnerStatus::Registering, Some(at)) => {
                        waiting(Budget::Registration, at + seconds(b.registration_seconds))
                    }
                    // A script that reports that it waits.
                    (_, RunnerStatus::Idle, Some(at)) => waiting(Budget::Idle, at + seconds(b.idle_seconds)),
                    (_, RunnerStatus::Unknown, Some(at)) => {
                        waiting(Budget::Unobserved, at + seconds(b.unobserved_seconds))
                    }
                    _ => None,
                };
                Some(waits.into_iter().fold(lifetime, |a, b| if b.1 < a.1 { b } else { a }))
            }
            State::Draining => {
                // Nothing tells a script to end, and nothing would report that it has no job.
                let nothing_ends_it =
                    self.runner_status == RunnerStatus::Unknown && self.announced_by != Some(Announcer::Hook);
                let limit =
                    if nothing_ends_it { b.drain_seconds.min(UNOBSERVED_DRAIN_SECONDS) } else { b.drain_seconds };
                let end = self.entered_at + seconds(limit) + away;
                Some((Budget::Drain, self.drain_until.map_or(end, |until| until.max(end))))
            }
            // Neither the CI server nor the time in which the service was down extends it: it holds a slot.
            State::Kept => Some((Budget::KeepOnFailure, self.kept_until())),
            // Cleaning up is retried until it succeeds: giving up here would leak the slot or the disk.
            State::Stopping | State::Deleting | State::Deleted => None,
        }
    }

    /// Upper limit for extended draining while the runner is busy.
    pub fn drain_cap(&self) -> Timestamp {
        let b = &self.spec.budgets;
        self.entered_at
            + SignedDuration::from_millis(self.away_ms)
            + seconds(match self.announced_by {
                // The job has ended, or the end of the vm was requested: at most an upload is left.
                Some(Announcer::Hook | Announcer::Admin) | None => b.drain_cap_seconds,
                // The pool had no job for it, but the CI server gave it one, which may take the whole lifetime.
                Some(Announcer::Pool) => b.lifetime_seconds,
            })
    }

    fn lifetime_ends(&self) -> Timestamp {
        self.entered_at + seconds(self.spec.budgets.lifetime_seconds) + SignedDuration::from_millis(self.stepped_ms)
    }

    fn kept_until(&self) -> Timestamp {
        self.entered_at
            + seconds(self.spec.budgets.keep_on_failure_seconds)
            + SignedDuration::from_millis(self.stepped_ms)
    }

    /// The end of the wait for the next attempt.
    pub(super) fn next_queue_deadline(&mut self, at: Timestamp) -> Timestamp {
        let b = &self.spec.budgets;
        let boot = seconds(b.boot_seconds);
        let known = self.queue_deadline.unwrap_or(at + seconds(b.queue_seconds));
        if !self.host_refused {
            // The slot of the failed attempt may be taken by now: the next attempt has time to get another one.
            let deadline = known.max(at + boot);
            self.queue_deadline = Some(deadline);
            return deadline;
        }
        // The same wait goes on, however often the host refuses. A vm that could not wait at its creation had been given a slot. If
        // others took that slot, or the next attempt is certain to have another accelerator, its wait is limited by its boot budget.
        let replaced = self.slot_taken || self.last_fault.as_ref().is_some_and(|f| f.code == Code::AcceleratorFailed);
        let more = (boot - seconds(b.queue_seconds)).max(SignedDuration::ZERO);
        if replaced { known + more } else { known }
    }

    /// Moves what lies ahead to the new scale of the clock. What has happened keeps the time that the clock showed then.
    pub(super) fn clock_stepped(&mut self, milliseconds: i64) {
        let step = SignedDuration::from_millis(milliseconds);
        let moved = |at: &mut Timestamp| *at = at.saturating_add(step).unwrap_or(*at);
        self.away_ms += milliseconds;
        self.stepped_ms += milliseconds;
        match &mut self.queue {
            Some(queue) => {
                moved(&mut queue.deadline);
                queue.not_before.iter_mut().for_each(moved);
            }
            None => self.paused_ms += milliseconds,
        }
        self.queue_deadline.iter_mut().for_each(moved);
        self.paused_at.iter_mut().for_each(moved);
        self.drain_until.iter_mut().for_each(moved);
        if let Some((_, at)) = &mut self.end_proof {
            moved(at);
        }
    }
}
