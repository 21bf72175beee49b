//! Polls the runner of a live vm at its CI server and records its state as events of the vm. Webhooks usually report it
//! sooner, but can be lost.

use std::{future::pending, sync::Arc, time::Duration};

use super::{pace::Pace, reach::Reach, record::record};
use crate::{
    domain::{
        Event, RunnerStatus, State, Vm, VmId,
        runner::RunnerFact,
        source_runner::{Registered, SourceRunner},
    },
    parts::Parts,
    platform::Clock,
    reconcile::vms::drain_extension,
    sources::{CiServer, Sources, runner::ServerRunner},
    store::{Ledger, Reader, StoreError},
};

/// What the polling interval depends on. A change of anything else does not postpone the next request.
fn phase(vm: &Vm) -> (State, u32, RunnerStatus, bool) {
    (vm.state, vm.attempt, vm.runner_status, vm.registered.is_some())
}

pub(in crate::reconcile) struct RunnerWatch {
    ledger: Ledger,
    reader: Reader,
    sources: Sources,
    reach: Reach,
    clock: Clock,
    pace: Pace,
}

impl RunnerWatch {
    pub fn new(parts: &Parts, reach: Reach, pace: Pace) -> Self {
        let Parts { ledger, reader, sources, clock, .. } = parts.clone();
        Self { ledger, reader, sources, reach, clock, pace }
    }

    async fn record(&self, vm: &Vm, event: Event) -> Result<Option<Arc<Vm>>, StoreError> {
        record(&self.ledger, &self.clock, vm, event).await
    }

    /// Polls the vm's runner from its registration to its end. Never returns.
    pub async fn watch(&self, id: VmId) {
        let mut changes = self.ledger.changes().of(id);
        let mut vm = loop {
            match self.reader.vm(id).await {
                Ok(Some(vm)) => break Arc::new(vm),
                Ok(None) => return pending().await,
                Err(error) => {
                    tracing::warn!(vm.id = %id, error = %error, "cannot read the vm; retrying");
                    tokio::time::sleep(self.pace.first_retry).await;
                }
            }
        };
        // The attempt whose runner the server did not list when it was last asked.
        let mut missing = None;
        loop {
            let start = phase(&vm);
            let due = async {
                match self.watched(&vm) {
                    Some((runner, pace)) => {
                        let pace = if missing == Some(vm.attempt) { pace.min(self.pace.soon) } else { pace };
                        tokio::time::sleep(pace).await;
                        self.reach.back(&runner.source_scope()).await;
                    }
                    None => pending().await,
                }
            };
            let moved = async {
                loop {
                    if changes.changed().await.is_err() {
                        return pending().await;
                    }
                    if let Some(now) = changes.borrow_and_update().clone()
                        && phase(&now) != start
                    {
                        return now;
                    }
                }
            };
            tokio::select! {
                biased;
                now = moved => vm = now,
                () = due => match self.look(&vm, &mut missing).await {
                    Ok(now) => vm = now,
                    Err(error) => tracing::error!(vm.id = %id, error = %error, "cannot record the runner's state"),
                },
            }
        }
    }

    fn server(&self, runner: &SourceRunner) -> Option<&CiServer> {
        self.sources.server(&runner.source)
    }

    fn watched<'v>(&self, vm: &'v Vm) -> Option<(&'v SourceRunner, Duration)> {
        let runner = vm.spec.managed()?;
        vm.registered.as_ref()?;
        self.server(runner)?;
        let pace = &self.pace;
        let comes_or_goes = matches!(vm.runner_status, RunnerStatus::None | RunnerStatus::Registering);
        match (vm.state, vm.runner_status) {
            (_, RunnerStatus::Gone) => None,
            (State::Booting | State::Configuring | State::Draining, _) => Some((runner, pace.soon)),
            (State::Running, _) => Some((runner, if comes_or_goes { pace.soon } else { pace.calm })),
            (State::Queued | State::Cloning | State::Kept | State::Stopping | State::Deleting | State::Deleted, _) => {
                None
            }
        }
    }

    /// Queries the server once, and returns the vm after the resulting events.
    async fn look(&self, vm: &Arc<Vm>, missing: &mut Option<u32>) -> Result<Arc<Vm>, StoreError> {
        // Reads the current row: `watch` follows only changes of the phase.
        let Some(vm) = self.reader.vm(vm.id()).await?.map(Arc::new) else { return Ok(vm.clone()) };
        let (Some(runner), Some(registered)) = (vm.spec.managed(), &vm.registered) else { return Ok(vm) };
        let Some(runner_id) = &registered.runner_id else { return Ok(vm) };
        let Some(server) = self.server(runner) else { return Ok(vm) };
        let found = server.runner(&runner.scope, runner_id).await;
        self.reach.note(&runner.source_scope(), &found, self.clock.now());
        match found {
            Ok(Some(seen)) => {
                *missing = None;
                self.seen(&vm, registered, &seen).await
            }
            // One such answer may be wrong: a replica that is late, or a permission that is missing for a moment.
            Ok(None) if missing.replace(vm.attempt) == Some(vm.attempt) => self.missed(&vm, registered).await,
            Ok(None) => Ok(vm),
            Err(error) => {
                tracing::warn!(vm.id = %vm.id(), runner.id = %runner_id, error = %error, "cannot query the runner at its CI server");
                Ok(vm)
            }
        }
    }

    async fn seen(&self, vm: &Arc<Vm>, registered: &Registered, seen: &ServerRunner) -> Result<Arc<Vm>, StoreError> {
        let mut vm = vm.clone();
        if seen.online != Some(true) && !seen.busy {
            return self.extended(vm, false).await;
        }
        // Recorded before the events that follow from it: from now on the absence of the runner means that it has
        // ended.
        if self.reader.runner(&registered.name).await?.is_some_and(|row| row.seen_at.is_none()) {
            self.ledger.runner_seen(&registered.name, self.clock.now()).await?;
        }
        // Only the wrapper of a configured guest starts a runner, so the guest's report was lost or is late.
        if matches!(vm.state, State::Booting | State::Configuring) {
            match self.record(&vm, Event::GuestConfigured).await? {
                Some(now) => vm = now,
                None => return Ok(vm),
            }
        }
        // `busy: false` proves nothing: servers report it late or wrongly.
        let fact = if seen.busy { RunnerFact::JobStarted } else { RunnerFact::Online };
        if vm.runner_status.after(fact) != vm.runner_status {
            match self.record(&vm, Event::RunnerChanged { fact }).await? {
                Some(now) => vm = now,
                None => return Ok(vm),
            }
        }
        self.extended(vm, seen.busy).await
    }

    /// A server removes a runner for one job together with the job's result: while the runner is registered, its job is
    /// not done.
    async fn extended(&self, vm: Arc<Vm>, busy: bool) -> Result<Arc<Vm>, StoreError> {
        match drain_extension(&vm, busy, self.clock.now()) {
            Some(event) => Ok(self.record(&vm, event).await?.unwrap_or(vm)),
            None => Ok(vm),
        }
    }

    async fn missed(&self, vm: &Arc<Vm>, registered: &Registered) -> Result<Arc<Vm>, StoreError> {
        let row = self.reader.runner(&registered.name).await?;
        // The server may not show a new runner yet. A busy runner was registered, even if it was never seen.
        let was_there = row.is_some_and(|row| row.seen_at.is_some()) || vm.runner_status == RunnerStatus::Busy;
        if !was_there {
            return Ok(vm.clone());
        }
        tracing::info!(vm.id = %vm.id(), runner.name = registered.name, "the runner is no longer registered at its CI server");
        let gone = Event::RunnerChanged { fact: RunnerFact::Deregistered };
        Ok(self.record(vm, gone).await?.unwrap_or_else(|| vm.clone()))
    }
}
