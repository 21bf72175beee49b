//! The task of one vm: runs the step of its state against its deadline, and applies the resulting event, until the vm
//! is deleted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::watch;

use super::{budgets::SpentBudgets, steps::Steps};
use crate::{
    domain::{Code, EndProof, Event, Fault, State, Vm},
    parts::Parts,
    platform::Clock,
    reconcile::{
        failure::{Failure, FailureKind, failed},
        host::HostObserver,
        presence::Presence,
        runners::RunnerWatch,
    },
    store::{Expect, Ledger, Reader, StoreError, guest_heartbeats::GuestHeartbeats},
};

/// The latest state of the vm, updated with each event.
type Newest = watch::Receiver<Option<Arc<Vm>>>;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// After a time without writes, no budget counts as spent for this long, so that guests can repeat their reports.
const REPORT_GRACE: Duration = Duration::from_secs(30);
/// Pause between two questions whether the runner of a silent guest has a job.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// Longest pause after a failed write while the database accepts others.
const LONGEST_PAUSE_WRITABLE: Duration = Duration::from_secs(1);

enum Next {
    /// The step succeeded.
    Fact(Event),
    Failed(Failure),
    /// A budget was spent, which led to this event.
    Spent(Event),
    /// The CI server reported that the runner has finished, and its settle time is over.
    Settled(EndProof),
    /// The vm has left the state that the step belongs to.
    Moved,
}

/// Whether `GET /host` shows this refusal as a fault of its own. A refused guest is shown by the ceiling, a taken slot by the
/// usage, and a failed accelerator by its driver.
fn is_shown_as_refusal(code: Code) -> bool {
    !matches!(code, Code::HostLimit | Code::SlotTaken | Code::AcceleratorFailed)
}

pub(in crate::reconcile) struct VmTask {
    ledger: Ledger,
    reader: Reader,
    heartbeats: GuestHeartbeats,
    clock: Clock,
    presence: Presence,
    host: HostObserver,
    steps: Steps,
    budgets: SpentBudgets,
    runner_watch: RunnerWatch,
}

impl VmTask {
    pub fn new(
        parts: &Parts,
        presence: Presence,
        host: HostObserver,
        steps: Steps,
        budgets: SpentBudgets,
        runner_watch: RunnerWatch,
    ) -> Self {
        let Parts { ledger, reader, heartbeats, clock, .. } = parts.clone();
        Self { ledger, reader, heartbeats, clock, presence, host, steps, budgets, runner_watch }
    }

    /// Returns when the vm is deleted.
    pub async fn drive(&self, vm: Vm) {
        let (id, managed) = (vm.id(), vm.spec.managed().is_some());
        if managed {
            tokio::select! {
                () = self.drive_steps(vm) => {}
                () = self.runner_watch.watch(id) => {}
            }
        } else {
            self.drive_steps(vm).await;
        }
        self.heartbeats.forget(id);
    }

    async fn drive_steps(&self, mut vm: Vm) {
        let id = vm.id();
        let mut changes = self.ledger.changes().of(id);
        let mut pause = FIRST_PAUSE;
        let mut rest = None;
        // The row may have changed before the subscription.
        match self.reader.vm(id).await {
            Ok(Some(now)) => vm = now,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(vm.id = %id, error = %error, "cannot read the vm; continuing with the last known state")
            }
        }
        while vm.state != State::Deleted {
            let step_of = (vm.state, vm.attempt);
            let next = self.until_next(&mut vm, &mut changes, rest.take()).await;
            let mut asked = None;
            let (expect, event, wait) = match next {
                Next::Moved => {
                    pause = FIRST_PAUSE;
                    continue;
                }
                Next::Fact(event) => (self.expectation(&vm, &event), event, false),
                Next::Spent(event) => (Expect::Generation(vm.generation), event, false),
                Next::Settled(proof) => {
                    (Expect::Generation(vm.generation), Event::EndProven { proof, exit_code: None }, false)
                }
                Next::Failed(failure) => {
                    tracing::warn!(
                        vm.id = %id, state = %vm.state, code = %failure.code, detail = %failure.detail,
                        tail = failure.tail.as_deref().unwrap_or_default(), "a step failed"
                    );
                    metrics::counter!("mayfly_step_failures_total", "step" => vm.state.as_str(), "code" => failure.code.slug())
                        .increment(1);
                    asked = failure.retry_after;
                    let fault = Fault { code: failure.code, detail: failure.detail, at: self.clock.now() };
                    if fault.code == Code::HostLimit {
                        self.host.limit_met(&vm, fault.clone()).await;
                    }
                    if failure.kind == FailureKind::Host && is_shown_as_refusal(fault.code) {
                        self.host.step_refused(&vm, fault.clone());
                    }
                    if fault.code == Code::AcceleratorFailed {
                        // Updates `GET /host` at once: its guests are slow from now on.
                        self.host.probe_drivers(false).await;
                    }
                    let (event, wait) = failed(&vm, failure.kind, fault);
                    (Expect::Attempt { state: step_of.0, attempt: step_of.1 }, event, wait)
                }
            };
            // A repeated fault is not recorded again: a disk that stays full would be filled with events.
            let known = matches!((&event, &vm.last_fault), (Event::StepFailed { fault }, Some(last))
                if fault.code == last.code && fault.detail == last.detail);
            if !known {
                match self.ledger.apply(id, expect, event, self.clock.now()).await {
                    Ok(applied) => {
                        vm = (*applied.vm).clone();
                        if applied.changed() && (vm.state, vm.attempt) != step_of {
                            entered(&vm);
                            pause = FIRST_PAUSE;
                        }
                    }
                    Err(StoreError::Refused(error)) => {
                        tracing::error!(vm.id = %id, error = %error, "the lifecycle table refused the event of a step");
                        match self.reader.vm(id).await {
                            Ok(Some(now)) => vm = now,
                            Ok(None) => return,
                            Err(_) => {}
                        }
                        pause = self.rest(pause).await;
                    }
                    Err(error) => {
                        tracing::warn!(vm.id = %id, error = %error, "cannot write to the ledger; retrying");
                        pause = self.until_writable(pause).await;
                    }
                }
            }
            if wait && (vm.state, vm.attempt) == step_of {
                rest = Some(pause.max(asked.unwrap_or_default()));
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Runs the step of the vm's state, after a pause if it failed before. Ends early when the deadline passes or
    /// when another event moves the vm.
    async fn until_next(&self, vm: &mut Vm, changes: &mut Newest, rest: Option<Duration>) -> Next {
        let step_of = (vm.state, vm.attempt);
        let start = vm.clone();
        let begun = AtomicBool::new(false);
        let step = async {
            if let Some(rest) = rest {
                tokio::time::sleep(rest).await;
            }
            begun.store(true, Ordering::Relaxed);
            self.steps.run(&start).await
        };
        tokio::pin!(step);
        loop {
            let seen = vm.clone();
            let spent = async {
                match seen.deadline() {
                    Some((budget, at)) => {
                        loop {
                            self.clock.sleep_until(at).await;
                            // Guests repeat the reports that could not be stored; they count before the budget does.
                            self.ledger.health().wait_until_writable(REPORT_GRACE).await;
                            // If the service was suspended until now, the budget is longer than it seemed.
                            self.presence.confirmed().await;
                            // The row may have been read a moment before the clock was set back.
                            if self.clock.now() >= at {
                                break;
                            }
                        }
                        self.budgets.spent(&seen, budget).await
                    }
                    None => std::future::pending().await,
                }
            };
            let done = vm.settle_deadline();
            let settled = async {
                match done {
                    Some((proof, at)) => {
                        self.clock.sleep_until(at).await;
                        proof
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = newer(changes, vm) => {
                    let resumed = seen.paused_at.is_some() && vm.paused_at.is_none() && !begun.load(Ordering::Relaxed);
                    if (vm.state, vm.attempt) != step_of || resumed {
                        return Next::Moved;
                    }
                }
                proof = settled => return Next::Settled(proof),
                fact = &mut step => return match fact {
                    Ok(event) => Next::Fact(event),
                    Err(failure) => Next::Failed(failure),
                },
                event = spent => return Next::Spent(event),
                event = self.silence(&seen) => return Next::Spent(event),
            }
        }
    }

    /// Returns when the wrapper in the guest has been silent for too long.
    async fn silence(&self, vm: &Vm) -> Event {
        let Some(limit) = vm.longest_silence() else { return std::future::pending().await };
        loop {
            self.heartbeats.silence(vm.id(), limit).await;
            if let Some(event) = self.budgets.silent(vm).await {
                return event;
            }
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }

    /// The condition under which a step's result is applied.
    fn expectation(&self, vm: &Vm, event: &Event) -> Expect {
        match event {
            // Whether another attempt follows was read from the row: a request to end the vm changes that.
            Event::InstanceAbsent | Event::AttemptCleared { .. } => Expect::Generation(vm.generation),
            _ => Expect::Attempt { state: vm.state, attempt: vm.attempt },
        }
    }

    /// Like `rest`, but ends as soon as the database accepts writes again, so that all vms continue at once.
    async fn until_writable(&self, pause: Duration) -> Duration {
        let mut fault = self.ledger.health().changes();
        if fault.borrow().is_none() {
            return self.rest(pause.min(LONGEST_PAUSE_WRITABLE)).await;
        }
        tokio::select! {
            pause = self.rest(pause) => pause,
            Ok(_) = fault.wait_for(Option::is_none) => FIRST_PAUSE,
        }
    }

    async fn rest(&self, pause: Duration) -> Duration {
        tokio::time::sleep(pause).await;
        (pause * 2).min(LONGEST_PAUSE)
    }
}

/// Returns once the vm has a newer generation, and updates `vm`.
async fn newer(changes: &mut Newest, vm: &mut Vm) {
    loop {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
        if let Some(now) = changes.borrow_and_update().as_deref()
            && now.generation > vm.generation
        {
            *vm = now.clone();
            return;
        }
    }
}

fn entered(vm: &Vm) {
    let took = vm
        .timeline
        .len()
        .checked_sub(2)
        // Negative if the clock was set back meanwhile.
        .map(|before| vm.entered_at.duration_since(vm.timeline[before].at).as_secs_f64().max(0.0))
        .unwrap_or_default();
    tracing::info!(vm.id = %vm.id(), vm.name = %vm.spec.name, state = %vm.state, previous_seconds = took, "vm changed state");
    if let Some(before) = vm.timeline.len().checked_sub(2) {
        metrics::histogram!("mayfly_vm_state_seconds", "state" => vm.timeline[before].state.as_str()).record(took);
    }
    if vm.state == State::Deleted {
        let result = vm.outcome.as_ref().map_or("", |outcome| outcome.result.as_str());
        metrics::counter!("mayfly_vms_ended_total", "result" => result).increment(1);
        let signal = word(vm.end_signal);
        let label = signal.clone().unwrap_or_else(|| "none".to_owned());
        metrics::counter!("mayfly_vm_end_signals_total", "signal" => label).increment(1);
        tracing::info!(
            vm.id = %vm.id(), vm.name = %vm.spec.name, template = %vm.spec.template, pool = vm.spec.pool,
            result, code = vm.outcome.as_ref().and_then(|outcome| outcome.code).map(|code| code.slug()),
            exit_code = vm.job_exit_code, announced_by = word(vm.announced_by), end_signal = signal,
            attempts = vm.attempt, seconds = %durations(vm), "vm ended"
        );
    }
}

/// A value of an enum as the API writes it.
fn word(value: Option<impl serde::Serialize>) -> Option<String> {
    value.and_then(|value| serde_json::to_value(value).ok()?.as_str().map(str::to_owned))
}

/// The whole life and its states, in seconds: `71.2 (queued 0.1, cloning 0.3, …)`. A state that came again is there
/// again.
fn durations(vm: &Vm) -> String {
    let seconds = |from: jiff::Timestamp, to: jiff::Timestamp| to.duration_since(from).as_secs_f64().max(0.0);
    let states = vm.timeline.windows(2).map(|pair| format!("{} {:.1}", pair[0].state, seconds(pair[0].at, pair[1].at)));
    format!("{:.1} ({})", seconds(vm.created_at, vm.entered_at), states.collect::<Vec<_>>().join(", "))
}
