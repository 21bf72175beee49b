//! Pauses the budgets of vms that wait for a CI server while it cannot be reached, and probes it until it answers again. `reach` decides whether it can be reached.

use std::{collections::HashSet, future::pending};

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::{
    pace::Pace,
    reach::{Link, Links, Reach},
};
use crate::{
    domain::{Event, RunnerStatus, State, Vm, source_runner::SourceScope},
    parts::Parts,
    platform::Clock,
    sources::Sources,
    store::{Expect, Ledger, Reader, StoreError},
};

/// Whether the progress of the vm depends on its CI server in its current state.
fn waits(vm: &Vm) -> bool {
    match vm.state {
        State::Queued | State::Cloning | State::Configuring => true,
        State::Running => {
            matches!(vm.runner_status, RunnerStatus::None | RunnerStatus::Registering | RunnerStatus::Idle)
        }
        State::Booting | State::Draining | State::Kept | State::Stopping | State::Deleting | State::Deleted => false,
    }
}

#[derive(Clone)]
pub(in crate::reconcile) struct ServersAway {
    ledger: Ledger,
    reader: Reader,
    sources: Sources,
    reach: Reach,
    clock: Clock,
    pace: Pace,
}

impl ServersAway {
    pub fn new(parts: &Parts, reach: Reach, pace: Pace) -> Self {
        let Parts { ledger, reader, sources, clock, .. } = parts.clone();
        Self { ledger, reader, sources, reach, clock, pace }
    }

    /// Pauses the budgets of vms that wait for a server while it cannot be reached, and resumes them afterwards.
    pub async fn pause_forever(self) {
        let mut links = self.reach.subscribe();
        // Subscribes before it reads the rows, so that no change between the two is missed.
        let mut changes = self.ledger.changes().subscribe();
        let mut first = true;
        loop {
            let known = links.borrow_and_update().clone();
            // A failed write is retried: no other event would trigger it again.
            let mut redo = false;
            match self.reader.live_vms().await {
                Ok(live) => {
                    for vm in &live {
                        if let (true, Some(runner), Some(_)) = (first, vm.spec.managed(), vm.paused_at) {
                            self.reach.doubt(&runner.source_scope());
                        }
                        redo |= !self.pause_or_resume(vm, &known).await;
                    }
                    first = false;
                }
                Err(error) => {
                    tracing::error!(error = %error, "cannot read the live vms; retrying");
                    tokio::time::sleep(self.pace.first_retry).await;
                    continue;
                }
            }
            loop {
                tokio::select! {
                    changed = links.changed() => match changed {
                        Ok(()) => break,
                        Err(_) => return pending().await,
                    },
                    change = changes.recv() => match change {
                        Ok(change) => redo |= !self.pause_or_resume(&change.vm, &known).await,
                        Err(RecvError::Lagged(_)) => break,
                        Err(RecvError::Closed) => return pending().await,
                    },
                    () = tokio::time::sleep(self.pace.first_retry), if redo => break,
                }
            }
        }
    }

    /// `false`: the event could not be written.
    async fn pause_or_resume(&self, vm: &Vm, links: &Links) -> bool {
        let Some(runner) = vm.spec.managed() else { return true };
        // Without credentials there is nothing to wait for.
        let configured = self.sources.server(&runner.source).is_some();
        let link = if configured { links.get(&runner.source_scope()).copied() } else { Some(Link::Up) };
        let event = match (link, vm.paused_at) {
            (Some(Link::Away { .. }), None) if waits(vm) => Event::BudgetsPaused,
            (Some(Link::Up), Some(_)) if vm.state != State::Deleted => Event::BudgetsResumed,
            _ => return true,
        };
        // If the vm changed meanwhile, its change is still in the channel and is handled next.
        let expect = Expect::Generation(vm.generation);
        match self.ledger.apply(vm.id(), expect, event, self.clock.now()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(vm.id = %vm.id(), error = %error, "cannot record whether the vm waits for its CI server");
                // An event that the lifecycle table refuses now will also be refused later.
                matches!(error, StoreError::Refused(_))
            }
        }
    }

    /// Probes the scopes that could not be reached, until they answer.
    pub async fn probe_forever(self) {
        let mut links = self.reach.subscribe();
        let mut pause = self.pace.first_retry;
        loop {
            let away: HashSet<(SourceScope, Option<Timestamp>)> = links
                .borrow_and_update()
                .iter()
                .filter_map(|(at, link)| match link {
                    Link::Away { until } => Some((at.clone(), *until)),
                    Link::Up => None,
                })
                .collect();
            for (source, _) in self.sources.iter() {
                let here = away.iter().filter(|(at, _)| at.source == *source).count();
                metrics::gauge!("mayfly_source_scopes_away", "source" => source.to_string()).set(here as f64);
            }
            if away.is_empty() {
                pause = self.pace.first_retry;
                if links.changed().await.is_err() {
                    return pending().await;
                }
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = self.pace.longer(pause);
            for (at, until) in away {
                if until.is_none_or(|until| until <= self.clock.now())
                    && let Some(server) = self.sources.server(&at.source)
                {
                    let visible = server.visible(&at.scope).await;
                    self.reach.note(&at, &visible, self.clock.now());
                }
            }
        }
    }
}
