//! Removes runners at GitHub whose vm or attempt has ended. Only runners with a row in `github_runners` are touched.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use super::{pace::Pace, reach::Reach, removal::count_removal};
use crate::{
    domain::{RunnerStatus, State, Vm, orphaned_runner::is_over},
    parts::Parts,
    platform::{Clock, clock},
    sources::github::{GitHubClient, model},
    store::{Change, Ledger, Reader, StoreError, github_runners::RunnerRow},
};

/// Without any change, all rows are checked at this interval.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 4;
/// GitHub may report a killed runner as busy for 15 minutes, and refuses to remove it until then.
const PATIENCE: SignedDuration = SignedDuration::from_mins(20);
/// GitHub may still carry out a request whose answer was lost this much later.
const LATE: SignedDuration = SignedDuration::from_mins(2);
/// Longest pause between two tries after `PATIENCE`: from then on an administrator has to act at GitHub.
const SELDOM: Duration = Duration::from_secs(3600);

/// Retry state of the removal of one runner.
struct Trying {
    since: Timestamp,
    next: Instant,
    pause: Duration,
    warned: bool,
}

enum RemovalAttempt {
    Gone,
    /// To be retried later, with GitHub's answer as the reason.
    Stays(String),
}

#[derive(Clone)]
pub(in crate::reconcile) struct OrphanedRunners {
    ledger: Ledger,
    reader: Reader,
    client: Option<Arc<GitHubClient>>,
    reach: Reach,
    clock: Clock,
    pace: Pace,
}

impl OrphanedRunners {
    pub fn new(parts: &Parts, reach: Reach, pace: Pace) -> Self {
        let Parts { ledger, reader, github: client, clock, .. } = parts.clone();
        Self { ledger, reader, client, reach, clock, pace }
    }

    pub async fn remove_forever(self) {
        let Some(github) = &self.client else { return pending().await };
        let mut changes = self.ledger.changes().subscribe();
        let mut links = self.reach.subscribe();
        let mut trying: HashMap<String, Trying> = HashMap::new();
        loop {
            links.borrow_and_update();
            let next = match self.remove_due(github, &mut trying).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(error = %error, "cannot remove orphaned runners; retrying");
                    clock::monotonic() + self.pace.first_retry
                }
            };
            let new_orphan = async {
                loop {
                    match changes.recv().await {
                        Ok(change) if leaves_a_runner(&change) => return,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => return,
                        Err(RecvError::Closed) => return pending().await,
                    }
                }
            };
            tokio::select! {
                () = new_orphan => {}
                Ok(()) = links.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Removes the runners that are due; returns when the next ones are due.
    async fn remove_due(
        &self,
        github: &GitHubClient,
        trying: &mut HashMap<String, Trying>,
    ) -> Result<Instant, StoreError> {
        let orphans = self.reader.orphaned_runners().await?;
        trying.retain(|name, _| orphans.iter().any(|(row, _)| row.name == *name));
        metrics::gauge!("mayfly_github_ghosts").set(orphans.len() as f64);
        let now = clock::monotonic();
        let due = orphans
            .into_iter()
            .filter(|(row, _)| trying.get(&row.name).is_none_or(|t| t.next <= now) && !self.reach.is_away(&row.scope));
        let asked: Vec<_> = stream::iter(due)
            .map(|(row, vm)| async move {
                let removal = self.remove_one(github, &row, vm.as_ref()).await;
                (row, removal)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (row, removal) in asked {
            match removal {
                RemovalAttempt::Gone => {
                    self.ledger.runner_gone(&row.name).await?;
                    trying.remove(&row.name);
                }
                RemovalAttempt::Stays(why) => self.again(trying, &row, &why),
            }
        }
        let soonest = trying.values().map(|t| t.next).min();
        Ok(soonest.map_or(clock::monotonic() + LOOK_EVERY, |next| next.min(clock::monotonic() + LOOK_EVERY)))
    }

    fn again(&self, trying: &mut HashMap<String, Trying>, row: &RunnerRow, why: &str) {
        let (pace, now) = (&self.pace, self.clock.now());
        let t = trying.entry(row.name.clone()).or_insert_with(|| {
            tracing::info!(vm.id = %row.vm_id, runner.name = %row.name, why, "cannot remove an orphaned runner yet; retrying");
            Trying { since: now, next: clock::monotonic(), pause: pace.first_retry, warned: false }
        });
        t.next = clock::monotonic() + t.pause;
        t.pause = if t.warned { (t.pause * 2).min(SELDOM) } else { pace.longer(t.pause) };
        if !t.warned && now.duration_since(t.since) >= PATIENCE {
            t.warned = true;
            tracing::warn!(
                vm.id = %row.vm_id, runner.name = %row.name, scope = %row.scope.slug(), since = %t.since, why,
                "an orphaned runner could not be removed from GitHub for a long time; retrying"
            );
        }
    }

    async fn remove_one(&self, github: &GitHubClient, row: &RunnerRow, vm: Option<&Vm>) -> RemovalAttempt {
        // GitHub has already reported that the runner is gone.
        let said = vm.is_some_and(|vm| {
            vm.runner_status == RunnerStatus::Gone
                && vm.registered.as_ref().is_some_and(|r| r.runner_id == row.runner_id && r.name == row.name)
        });
        if said {
            return RemovalAttempt::Gone;
        }
        let id = match row.runner_id {
            Some(id) => id,
            None => {
                let found = github.find_runner_by_name(&row.scope, &row.name).await;
                self.reach.note(&row.scope, &found, self.clock.now());
                match found {
                    Ok(Some(r)) if r.status == model::RunnerStatus::Offline && !r.busy => r.id,
                    // No guest received the configuration of Mayfly's runner, so a runner that is online or busy is
                    // another one.
                    Ok(Some(r)) => {
                        tracing::warn!(
                            vm.id = %row.vm_id, runner.id = r.id, runner.name = %row.name,
                            "a runner with the name of an orphaned runner is online or busy, and Mayfly did not start it; leaving it"
                        );
                        return RemovalAttempt::Gone;
                    }
                    // Absolute, because the clock may have been set back.
                    Ok(None) if self.clock.now().duration_since(row.asked_at).abs() > LATE => {
                        return RemovalAttempt::Gone;
                    }
                    Ok(None) => {
                        let why = "GitHub does not list it; its registration may still take effect";
                        return RemovalAttempt::Stays(why.to_owned());
                    }
                    Err(error) => return RemovalAttempt::Stays(error.to_string()),
                }
            }
        };
        let removed = github.delete_runner(&row.scope, id).await;
        self.reach.note(&row.scope, &removed, self.clock.now());
        count_removal(&removed);
        match removed {
            Ok(removed) => {
                tracing::info!(vm.id = %row.vm_id, runner.id = id, runner.name = %row.name, ?removed, "removed an orphaned runner");
                RemovalAttempt::Gone
            }
            Err(error) => {
                tracing::debug!(vm.id = %row.vm_id, runner.id = id, error = %error, "cannot remove an orphaned runner now");
                RemovalAttempt::Stays(error.to_string())
            }
        }
    }
}

fn leaves_a_runner(change: &Change) -> bool {
    let vm = &change.vm;
    vm.spec.managed().is_some() && vm.attempt > 0 && is_over(vm.attempt, Some(vm)) && vm.state != State::Deleting
}
