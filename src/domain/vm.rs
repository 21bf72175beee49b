//! A vm: the result of applying its events in order.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    budgets::Budget,
    end::{EndSignal, Outcome, OutcomeResult},
    endpoint::Endpoint,
    error::{Code, Fault},
    event::{Announcer, EndProof, Event, GoneCause},
    guest::ResultSource,
    ids::{InstanceName, VmId},
    job_record::{JobRecord, JobStatus},
    lifecycle::{Verdict, decide},
    queue::{Queue, QueueReason},
    ready_check::GuestReadiness,
    runner::{RunnerFact, RunnerKind, RunnerStarted, RunnerStatus},
    source_runner::Registered,
    state::State,
    vm_spec::{TemplateSource, VmSpec},
};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TimelineEntry {
    pub state: State,
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Vm {
    #[serde(rename = "draft")]
    pub spec: VmSpec,
    /// Grows by one with every recorded event of this vm.
    pub generation: i64,
    pub state: State,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
    pub entered_at: Timestamp,
    pub timeline: Vec<TimelineEntry>,
    /// Only while queued.
    pub queue: Option<Queue>,
    /// When its wait for a slot ends. A refusal by the host does not start the wait anew. `None` in rows of earlier
    /// versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_deadline: Option<Timestamp>,
    /// Number of attempts: how often the vm got a slot.
    pub attempt: u32,
    pub failed_attempts: u32,
    pub ssh: Option<Endpoint>,
    pub host_key: Option<String>,
    pub runner_status: RunnerStatus,
    pub runner_changed_at: Option<Timestamp>,
    pub job_exit_code: Option<i32>,
    /// The guest reported different results of its job, one after the other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub job_results_differ: bool,
    /// Who reported `job_exit_code`.
    #[serde(default, skip_serializing_if = "ResultSource::is_default")]
    pub job_result_from: ResultSource,
    /// Whether the job's user differs from the wrapper's and cannot become it. `None`: this attempt's guest has not
    /// reported it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub separate_users: Option<bool>,
    /// The success of the readiness check in this attempt's guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<GuestReadiness>,
    pub announced_by: Option<Announcer>,
    pub announced_at: Option<Timestamp>,
    pub end_signal: Option<EndSignal>,
    pub outcome: Option<Outcome>,
    /// The most recent fault, whether or not a retry succeeded.
    pub last_fault: Option<Fault>,
    /// Set while an attempt is cleaned up because of a fault of the host and not of this vm.
    pub host_refused: bool,
    /// Number of attempts that the host has refused, one after the other.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub refusals: u32,
    /// Other guests took its slot: it is placed again as soon as a slot is free.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub slot_taken: bool,
    /// The registration of this attempt's runner at its CI server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registered: Option<Registered>,
    /// The jobs that its runner was given; usually at most one, but the CI server decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobRecord>,
    /// The CI server's report that the runner has finished, and its time.
    #[serde(default, rename = "done", skip_serializing_if = "Option::is_none")]
    pub end_proof: Option<(EndProof, Timestamp)>,
    /// Since when budgets that wait for the CI server are paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_at: Option<Timestamp>,
    /// How long the service was down since this state was entered, and by how much the clock was set meanwhile, in
    /// milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub away_ms: i64,
    /// How long these budgets were paused since their start, in milliseconds; includes the time in which the
    /// service was down, and steps of the clock.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paused_ms: i64,
    /// By how much the clock was set since this state was entered, in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub stepped_ms: i64,
    /// Until when draining is extended because the runner is busy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_until: Option<Timestamp>,
    /// The guest may start its runner, and no report since shows that it did.
    #[serde(default, skip_serializing_if = "is_false")]
    pub start_unconfirmed: bool,
    /// How many sessions were opened in its guests by callers of the API.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sessions: u32,
}

fn is_false(b: &bool) -> bool {
    !b
}

fn is_zero<N: Default + PartialEq>(n: &N) -> bool {
    *n == N::default()
}

pub(super) fn seconds(n: u32) -> SignedDuration {
    SignedDuration::from_secs(i64::from(n))
}

impl Vm {
    pub fn id(&self) -> VmId {
        self.spec.id
    }

    /// The instance of the current attempt; for a queued vm, that of the latest attempt.
    pub fn instance(&self) -> InstanceName {
        if self.spec.instance_per_attempt { self.id().instance_of(self.attempt) } else { self.id().instance() }
    }

    /// Creates the vm from its first event.
    pub fn created(spec: VmSpec, at: Timestamp) -> Vm {
        let deadline = at + seconds(spec.budgets.queue_seconds);
        Vm {
            generation: 1,
            state: State::Queued,
            created_at: at,
            updated_at: at,
            entered_at: at,
            timeline: vec![TimelineEntry { state: State::Queued, at }],
            queue: Some(Queue {
                reason: match spec.source {
                    TemplateSource::Resolved(_) => QueueReason::Slot,
                    TemplateSource::Awaited { .. } => QueueReason::Template,
                },
                deadline,
                not_before: None,
            }),
            queue_deadline: Some(deadline),
            attempt: 0,
            failed_attempts: 0,
            ssh: None,
            host_key: None,
            runner_status: RunnerStatus::None,
            runner_changed_at: None,
            job_exit_code: None,
            job_results_differ: false,
            job_result_from: ResultSource::default(),
            separate_users: None,
            ready: None,
            announced_by: None,
            announced_at: None,
            end_signal: None,
            outcome: None,
            last_fault: None,
            host_refused: false,
            refusals: 0,
            slot_taken: false,
            registered: None,
            jobs: Vec::new(),
            end_proof: None,
            paused_at: None,
            paused_ms: 0,
            away_ms: 0,
            stepped_ms: 0,
            drain_until: None,
            start_unconfirmed: false,
            sessions: 0,
            spec,
        }
    }

    /// Replays a vm from all its events. `None` if there are none, if they do not begin with `created`, or if they
    /// are impossible.
    pub fn replay<'a>(log: impl IntoIterator<Item = (&'a Event, Timestamp)>) -> Option<Vm> {
        let mut log = log.into_iter();
        let mut vm = match log.next() {
            Some((Event::Created { spec }, at)) => Vm::created((**spec).clone(), at),
            _ => return None,
        };
        for (event, at) in log {
            if !matches!(vm.apply(event, at), Verdict::Move(_) | Verdict::Note) {
                return None;
            }
        }
        Some(vm)
    }

    /// Applies one event. On `Ignore` and `Refuse` the vm is untouched. Never returns `End`: it is `Move` or `Note` then.
    pub fn apply(&mut self, event: &Event, at: Timestamp) -> Verdict {
        let (verdict, before_state) = (decide(self.state, event.kind()), self.state);
        match verdict {
            Verdict::Ignore | Verdict::Refuse(_) => return verdict,
            Verdict::Move(to) => {
                self.fold(event, at);
                self.enter(to, event, at);
            }
            Verdict::Note | Verdict::End => {
                let before = self.clone();
                self.fold(event, at);
                let to = if verdict == Verdict::End { self.after_end() } else { self.state };
                if to != self.state {
                    self.enter(to, event, at);
                } else if *self == before {
                    return Verdict::Ignore;
                }
            }
        }
        self.generation += 1;
        self.updated_at = at;
        if self.state == before_state { Verdict::Note } else { Verdict::Move(self.state) }
    }

    /// Applies everything of the event except the state.
    fn fold(&mut self, event: &Event, at: Timestamp) {
        match event {
            Event::Created { .. } | Event::SlotTaken | Event::Cloned => {}
            Event::QueueReasonChanged { reason } => {
                if let Some(queue) = &mut self.queue {
                    queue.reason = *reason;
                }
            }
            Event::TemplateReady { spec, budgets } => {
                if let TemplateSource::Awaited { .. } = self.spec.source {
                    self.spec.source = TemplateSource::Resolved(spec.clone());
                    self.spec.budgets = budgets.clone();
                    if let Some(queue) = &mut self.queue {
                        queue.reason = QueueReason::Slot;
                    }
                }
            }
            Event::EndpointFound { ssh, host_key } => {
                self.ssh = Some(ssh.clone());
                // Pinned at first contact: a later key never replaces it.
                if self.host_key.is_none() {
                    self.host_key.clone_from(host_key);
                }
            }
            Event::GuestReady { .. } | Event::InstanceStopped | Event::InstanceAbsent => {}
            Event::GuestConfigured => {
                if let Some(fact) = self.spec.runner.when_handed_over() {
                    self.runner(fact, at);
                }
                self.start_unconfirmed = self.spec.runner != RunnerKind::None;
            }
            // The first report counts: it comes before the job starts, and the job may be able to send another one.
            Event::GuestDescribed { separate_users } => {
                self.separate_users.get_or_insert(*separate_users);
            }
            Event::GuestChecked { version, state } => {
                self.ready.get_or_insert_with(|| GuestReadiness { version: version.clone(), state: *state, at });
            }
            Event::SessionOpened { .. } => self.sessions += 1,
            Event::RunnerChanged { fact } => self.runner(*fact, at),
            Event::JobFinished { exit_code, by } => {
                self.start_unconfirmed = false;
                self.job_result(*exit_code, self.result_source(*by));
            }
            Event::EndAnnounced { by } => {
                if *by == Announcer::Hook {
                    self.start_unconfirmed = false;
                }
                if self.announced_by.is_none() {
                    self.announced_by = Some(*by);
                    self.announced_at = Some(at);
                }
                // In these states there is no runner to wait for: the announcement is the end.
                if matches!(self.state, State::Queued | State::Cloning | State::Stopping | State::Deleting) {
                    match by {
                        Announcer::Hook => self.end(EndSignal::Hook, OutcomeResult::Completed, None, None),
                        Announcer::Admin => self.end(EndSignal::Admin, OutcomeResult::Cancelled, None, None),
                        Announcer::Pool => self.end(EndSignal::Pool, OutcomeResult::Cancelled, None, None),
                    }
                }
            }
            Event::EndProven { proof, exit_code } => self.proven(*proof, *exit_code, at),
            Event::EndForced { by } => {
                if self.announced_by.is_none() {
                    self.announced_by = Some(*by);
                    self.announced_at = Some(at);
                }
                self.end(EndSignal::Admin, OutcomeResult::Cancelled, None, None);
            }
            Event::InstanceGone { cause } => {
                // Its job's result is known, so a guest that ends after it loses nothing, whatever the cause. The hook
                // alone does not show that the runner has uploaded its last logs and its result.
                let done = self.job_exit_code.is_some();
                let announced = self.announced_by.is_some();
                let unneeded = matches!(self.announced_by, Some(Announcer::Admin | Announcer::Pool));
                match cause {
                    // Its runner was not started and will not be: the request to end the vm is fulfilled.
                    _ if unneeded && self.started() == RunnerStarted::No => {
                        let signal =
                            if self.announced_by == Some(Announcer::Pool) { EndSignal::Pool } else { EndSignal::Admin };
                        self.end(signal, OutcomeResult::Cancelled, None, None);
                    }
                    // The guest may have powered off because it did not receive the permission to start, which was
                    // given.
                    GoneCause::GuestPowerOff if self.start_unconfirmed => {
                        let detail = "the guest powered off after it was allowed to start its runner and before it said that it had";
                        let (lost, code) = (OutcomeResult::Lost, Some(Code::InstanceLost));
                        self.end(EndSignal::GuestPowerOff, lost, code, Some(detail.to_owned()));
                    }
                    GoneCause::GuestPowerOff if self.result_is_missing() => {
                        let detail = "the guest powered itself off before the result of its runner was known";
                        let (lost, code) = (OutcomeResult::Lost, Some(Code::InstanceLost));
                        self.end(EndSignal::GuestPowerOff, lost, code, Some(detail.to_owned()));
                    }
                    GoneCause::GuestPowerOff => {
                        self.end(EndSignal::GuestPowerOff, OutcomeResult::Completed, None, None);
                    }
                    GoneCause::GuestReset
                    | GoneCause::GuestPanic
                    | GoneCause::HypervisorError
                    | GoneCause::HostStop
                    | GoneCause::GuestWatchdog
                    | GoneCause::HostPause
                    | GoneCause::HostDiskFull
                    | GoneCause::AcceleratorFailed
                    | GoneCause::Unknown => {
                        if done {
                            self.end(EndSignal::InstanceGone, OutcomeResult::Completed, None, None);
                        } else {
                            let mut detail = cause.describe().to_owned();
                            if announced {
                                detail.push_str(", after its end was announced and before its runner had ended");
                            }
                            self.end(EndSignal::InstanceGone, OutcomeResult::Lost, Some(cause.code()), Some(detail));
                        }
                    }
                }
            }
            Event::RunnerRegistered { runner } => self.registered = Some(runner.clone()),
            Event::JobChanged { job } => self.job(job, at),
            Event::BudgetsPaused => {
                self.paused_at.get_or_insert(at);
            }
            Event::BudgetsResumed => {
                if let Some(since) = self.paused_at.take() {
                    self.paused_ms += at.as_millisecond() - since.as_millisecond();
                }
            }
            Event::ServiceAway { milliseconds } => {
                let away = (*milliseconds).max(0);
                self.away_ms += away;
                // A pause that continues includes this time when it ends.
                if self.paused_at.is_none() {
                    self.paused_ms += away;
                }
            }
            Event::ClockStepped { milliseconds } => self.clock_stepped(*milliseconds),
            Event::DrainExtended { until } => {
                self.drain_until = self.drain_until.max(Some((*until).min(self.drain_cap())));
            }
            Event::BudgetSpent { budget } => {
                // The vm has ended before, and was kept.
                let Some((signal, code)) = budget.end() else { return };
                let result = match budget {
                    // The job's end was announced; only the proof is missing.
                    Budget::Drain if self.announced_by == Some(Announcer::Hook) => OutcomeResult::Completed,
                    Budget::Drain if self.job_exit_code.is_some() => OutcomeResult::Completed,
                    Budget::Drain => OutcomeResult::Cancelled,
                    Budget::Heartbeat if self.announced_by == Some(Announcer::Hook) => OutcomeResult::Completed,
                    Budget::Heartbeat if self.job_exit_code.is_some() => OutcomeResult::Completed,
                    Budget::Queue
                    | Budget::Clone
                    | Budget::Boot
                    | Budget::Configure
                    | Budget::Registration
                    | Budget::Idle
                    | Budget::Unobserved
                    | Budget::Heartbeat
                    | Budget::Lifetime
                    | Budget::KeepOnFailure => OutcomeResult::Failed,
                };
                self.end(signal, result, Some(code), None);
            }
            Event::StepFailed { fault } => self.last_fault = Some(fault.clone()),
            Event::AttemptFailed { fault } => {
                self.failed_attempts += 1;
                self.refusals = 0;
                self.last_fault = Some(fault.clone());
            }
            Event::HostRefused { fault } => {
                self.host_refused = true;
                self.refusals += 1;
                self.slot_taken = fault.code == Code::SlotTaken;
                self.last_fault = Some(fault.clone());
            }
            Event::GivenUp { fault } => {
                self.last_fault = Some(fault.clone());
                self.end(EndSignal::GivenUp, OutcomeResult::Failed, Some(fault.code), Some(fault.detail.clone()));
            }
            Event::AttemptCleared { reason, not_before } => {
                let deadline = self.next_queue_deadline(at);
                // The next attempt has another guest, so facts about this guest do not apply to it.
                self.ssh = None;
                self.host_key = None;
                self.separate_users = None;
                self.ready = None;
                self.runner_status = RunnerStatus::None;
                self.runner_changed_at = None;
                self.announced_by = None;
                self.announced_at = None;
                self.host_refused = false;
                self.slot_taken = false;
                self.registered = None;
                self.end_proof = None;
                self.drain_until = None;
                self.start_unconfirmed = false;
                self.queue = Some(Queue { reason: *reason, deadline, not_before: Some(*not_before) });
            }
        }
    }

    /// Whether anything shows that its runner has, or had, a job.
    pub fn shows_a_job(&self) -> bool {
        let busy = self.runner_status == RunnerStatus::Busy;
        busy || !self.jobs.is_empty() || self.announced_by == Some(Announcer::Hook)
    }

    fn job(&mut self, job: &JobRecord, at: Timestamp) {
        match self.jobs.iter_mut().find(|known| known.key() == job.key()) {
            Some(known) => known.merge(job),
            None => self.jobs.push(job.clone()),
        }
        match job.status {
            JobStatus::Waiting | JobStatus::Queued => {}
            JobStatus::InProgress => self.runner(RunnerFact::JobStarted, at),
            JobStatus::Completed => {
                self.end_proof.get_or_insert((EndProof::JobCompleted, at));
            }
        }
    }

    fn enter(&mut self, to: State, event: &Event, at: Timestamp) {
        if self.state == State::Queued
            && let Some(deadline) = &mut self.queue_deadline
        {
            let paused = self.paused_at.map_or(SignedDuration::ZERO, |since| at.duration_since(since));
            *deadline += SignedDuration::from_millis(self.paused_ms) + paused;
        }
        self.state = to;
        self.entered_at = at;
        self.timeline.push(TimelineEntry { state: to, at });
        self.away_ms = 0;
        self.stepped_ms = 0;
        self.count_anew(at);
        if to != State::Queued {
            self.queue = None;
        }
        if matches!(event, Event::SlotTaken) {
            self.attempt += 1;
        }
    }

    pub(super) fn runner(&mut self, fact: RunnerFact, at: Timestamp) {
        if fact.shows_a_start() {
            self.start_unconfirmed = false;
        }
        let after = self.runner_status.after(fact);
        if after != self.runner_status {
            self.runner_status = after;
            self.runner_changed_at = Some(at);
            self.count_anew(at);
            if fact == RunnerFact::Deregistered {
                self.end_proof.get_or_insert((EndProof::RunnerGone, at));
            }
        }
    }

    /// Resets the paused time of a budget that begins now.
    fn count_anew(&mut self, at: Timestamp) {
        self.paused_ms = 0;
        if self.paused_at.is_some() {
            self.paused_at = Some(at);
        }
    }

    /// Whether a guest of this vm started the runner program. A guest starts it only after `running` was entered,
    /// and after that there is no further attempt.
    pub fn started(&self) -> RunnerStarted {
        if self.spec.runner == RunnerKind::None {
            return RunnerStarted::No;
        }
        if self.start_unconfirmed {
            return RunnerStarted::Maybe;
        }
        match self.runner_status {
            RunnerStatus::Unknown | RunnerStatus::Idle | RunnerStatus::Busy | RunnerStatus::Finished => {
                RunnerStarted::Yes
            }
            RunnerStatus::None | RunnerStatus::Registering | RunnerStatus::Gone
                if self.timeline.iter().any(|entry| entry.state == State::Running) =>
            {
                RunnerStarted::Yes
            }
            RunnerStatus::None | RunnerStatus::Registering | RunnerStatus::Gone => RunnerStarted::No,
        }
    }

    /// Whether another attempt follows the one that is being cleaned up.
    pub fn retries(&self) -> bool {
        self.outcome.is_none()
    }

    /// Whether another fresh clone may be tried after one more failed attempt.
    pub fn has_attempts_left(&self) -> bool {
        self.failed_attempts + 1 < self.spec.budgets.max_attempts
    }

    /// The event for a failure of this attempt that a fresh clone may not have.
    pub fn attempt_failed(&self, fault: Fault) -> Event {
        if self.has_attempts_left() { Event::AttemptFailed { fault } } else { Event::GivenUp { fault } }
    }

    /// How long the guest may take to power down before it is forced. Zero if the runner has finished, or if the
    /// deletion was requested with `force`: there is nothing left to save.
    pub fn stop_grace(&self) -> SignedDuration {
        match self.end_signal {
            Some(
                EndSignal::LifetimeBudget
                | EndSignal::IdleBudget
                | EndSignal::UnobservedBudget
                | EndSignal::RegistrationBudget,
            ) => seconds(self.spec.budgets.stop_grace_seconds),
            _ => SignedDuration::ZERO,
        }
    }

    /// How long this attempt's guest took from the start of its boot until its readiness check succeeded. Zero if the
    /// clock was set back meanwhile.
    pub fn ready_after(&self) -> Option<SignedDuration> {
        let ready = self.ready.as_ref()?;
        let booting = self.timeline.iter().rfind(|entry| entry.state == State::Booting)?;
        Some(ready.at.duration_since(booting.at).max(SignedDuration::ZERO))
    }

    pub fn deleted_at(&self) -> Option<Timestamp> {
        (self.state == State::Deleted).then_some(self.entered_at)
    }
}

#[cfg(test)]
#[path = "vm_tests.rs"]
mod tests;
