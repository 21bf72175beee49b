//! Budgets that wait for GitHub stand still while it does not answer; and asking it whether it answers again.

use std::{collections::HashSet, future::pending, sync::Arc};

use jiff::Timestamp;
use tokio::sync::broadcast::error::RecvError;

use super::{
    pace::Pace,
    reach::{Link, Links, Reach},
};
use crate::{
    domain::{Event, RunnerStatus, Scope, State, Vm},
    parts::Parts,
    platform::Clock,
    sources::github::GitHubClient,
    store::{Expect, Ledger, Reader, StoreError},
};

/// Whether the vm is in a part of its life that only GitHub can end well.
fn waits(vm: &Vm) -> bool {
    match vm.state {
        State::Queued | State::Cloning | State::Configuring => true,
        State::Running => {
            matches!(vm.runner_status, RunnerStatus::None | RunnerStatus::Registering | RunnerStatus::Idle)
        }
        State::Booting | State::Draining | State::Stopping | State::Deleting | State::Deleted => false,
    }
}

#[derive(Clone)]
pub(in crate::reconcile) struct GitHubAway {
    ledger: Ledger,
    reader: Reader,
    client: Option<Arc<GitHubClient>>,
    reach: Reach,
    clock: Clock,
    pace: Pace,
}

impl GitHubAway {
    pub fn new(parts: &Parts, reach: Reach, pace: Pace) -> Self {
        let Parts { ledger, reader, github: client, clock, .. } = parts.clone();
        Self { ledger, reader, client, reach, clock, pace }
    }

    /// Stops the budgets of vms that wait for GitHub while it is away, and lets them run again.
    pub async fn pause_forever(self) {
        let mut links = self.reach.subscribe();
        // Subscribed before the rows are read, so that no vm falls between the two.
        let mut changes = self.ledger.changes().subscribe();
        let mut first = true;
        loop {
            let known = links.borrow_and_update().clone();
            // What could not be written down is written down later: nothing else would bring it up again.
            let mut redo = false;
            match self.reader.live_vms().await {
                Ok(live) => {
                    for vm in &live {
                        if let (true, Some(runner), Some(_)) = (first, vm.spec.managed(), vm.paused_at) {
                            self.reach.doubt(&runner.scope);
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

    /// `false`: it could not be written down.
    async fn pause_or_resume(&self, vm: &Vm, links: &Links) -> bool {
        let Some(runner) = vm.spec.managed() else { return true };
        // Without a way to GitHub there is nothing to wait for.
        let link = if self.client.is_some() { links.get(&runner.scope).copied() } else { Some(Link::Up) };
        let event = match (link, vm.paused_at) {
            (Some(Link::Away { .. }), None) if waits(vm) => Event::BudgetsPaused,
            (Some(Link::Up), Some(_)) if vm.state != State::Deleted => Event::BudgetsResumed,
            _ => return true,
        };
        // If it changed meanwhile, that change is still before us.
        let expect = Expect::Generation(vm.generation);
        match self.ledger.apply(vm.id(), expect, event, self.clock.now()).await {
            Ok(_) => true,
            Err(error) => {
                tracing::error!(vm.id = %vm.id(), error = %error, "cannot record whether the vm waits for GitHub");
                // A vm that is gone, or that the table refuses this to, will not take it later either.
                matches!(error, StoreError::Refused(_))
            }
        }
    }

    /// Asks GitHub whether it is back, where it was away.
    pub async fn probe_forever(self) {
        let Some(github) = &self.client else { return pending().await };
        let mut links = self.reach.subscribe();
        let mut pause = self.pace.first_retry;
        loop {
            let away: HashSet<(Scope, Option<Timestamp>)> = links
                .borrow_and_update()
                .iter()
                .filter_map(|(scope, link)| match link {
                    Link::Away { until } => Some((scope.clone(), *until)),
                    Link::Up => None,
                })
                .collect();
            metrics::gauge!("mayfly_github_scopes_away").set(away.len() as f64);
            if away.is_empty() {
                pause = self.pace.first_retry;
                if links.changed().await.is_err() {
                    return pending().await;
                }
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = self.pace.longer(pause);
            for (scope, until) in away {
                if until.is_none_or(|until| until <= self.clock.now()) {
                    let visible = github.visible(&scope).await;
                    self.reach.note(&scope, &visible, self.clock.now());
                }
            }
        }
    }
}
