//! Removes runners from CI servers whose vm or attempt has ended. Only runners with a row in `runners` are touched.

use std::{collections::HashMap, future::pending, time::Duration};

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use super::{pace::Pace, reach::Reach, removal::count_removal};
use crate::{
    domain::{RunnerStatus, State, Vm, orphaned_runner::is_over},
    parts::Parts,
    platform::{Clock, clock},
    sources::{CiServer, Sources},
    store::{Change, Ledger, Reader, StoreError, runners::RunnerRow},
};

/// Without any change, all rows are checked at this interval.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 4;
/// GitHub reports a killed runner as busy for up to 15 minutes, Gitea until it gives up the job, and neither may be asked
/// to remove it until then.
const PATIENCE: SignedDuration = SignedDuration::from_mins(20);
/// A server may still carry out a request whose answer was lost this much later.
const LATE: SignedDuration = SignedDuration::from_mins(2);
/// Longest pause between two tries after `PATIENCE`: from then on an administrator has to act at the server.
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
    /// To be retried later, with the server's answer as the reason.
    Stays(String),
}

#[derive(Clone)]
pub(in crate::reconcile) struct OrphanedRunners {
    ledger: Ledger,
    reader: Reader,
    sources: Sources,
    reach: Reach,
    clock: Clock,
    pace: Pace,
}

impl OrphanedRunners {
    pub fn new(parts: &Parts, reach: Reach, pace: Pace) -> Self {
        let Parts { ledger, reader, sources, clock, .. } = parts.clone();
        Self { ledger, reader, sources, reach, clock, pace }
    }

    pub async fn remove_forever(self) {
        let mut changes = self.ledger.changes().subscribe();
        let mut links = self.reach.subscribe();
        let mut trying: HashMap<String, Trying> = HashMap::new();
        loop {
            links.borrow_and_update();
            let next = match self.remove_due(&mut trying).await {
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
    async fn remove_due(&self, trying: &mut HashMap<String, Trying>) -> Result<Instant, StoreError> {
        let orphans = self.reader.orphaned_runners().await?;
        trying.retain(|name, _| orphans.iter().any(|(row, _)| row.name == *name));
        for (source, _) in self.sources.iter() {
            let here = orphans.iter().filter(|(row, _)| row.at.source == *source).count();
            metrics::gauge!("mayfly_orphaned_runners", "source" => source.to_string()).set(here as f64);
        }
        let now = clock::monotonic();
        let due = orphans
            .into_iter()
            .filter(|(row, _)| trying.get(&row.name).is_none_or(|t| t.next <= now) && !self.reach.is_away(&row.at));
        let asked: Vec<_> = stream::iter(due)
            .map(|(row, vm)| async move {
                let removal = match self.sources.server(&row.at.source) {
                    Some(server) => self.remove_one(server, &row, vm.as_ref()).await,
                    None => {
                        RemovalAttempt::Stays(format!("no credentials for the source {} are configured", row.at.source))
                    }
                };
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
                vm.id = %row.vm_id, runner.name = %row.name, job.source = %row.at.source, scope = %row.at.scope.slug(), since = %t.since, why,
                "an orphaned runner could not be removed from its CI server for a long time; retrying"
            );
        }
    }

    async fn remove_one(&self, server: &CiServer, row: &RunnerRow, vm: Option<&Vm>) -> RemovalAttempt {
        // The server has already reported that the runner is gone.
        let said = vm.is_some_and(|vm| {
            vm.runner_status == RunnerStatus::Gone
                && vm.registered.as_ref().is_some_and(|r| r.runner_id == row.runner_id && r.name == row.name)
        });
        if said {
            return RemovalAttempt::Gone;
        }
        let ids = match row.runner_id.clone() {
            Some(id) => vec![id],
            None => {
                let found = server.runners_named(&row.at.scope, &row.name).await;
                self.reach.note(&row.at, &found, self.clock.now());
                match found {
                    // Absolute, because the clock may have been set back.
                    Ok(found) if found.is_empty() && self.clock.now().duration_since(row.asked_at).abs() > LATE => {
                        return RemovalAttempt::Gone;
                    }
                    Ok(found) if found.is_empty() => {
                        let why = "the server does not list it; its registration may still take effect";
                        return RemovalAttempt::Stays(why.to_owned());
                    }
                    Ok(found) => {
                        // No guest received the configuration of Mayfly's runner, so a runner that is online or busy is
                        // another one.
                        let (ours, others): (Vec<_>, Vec<_>) =
                            found.into_iter().partition(|runner| runner.online == Some(false) && !runner.busy);
                        for other in others {
                            tracing::warn!(
                                vm.id = %row.vm_id, runner.id = %other.id, runner.name = %row.name,
                                "a runner with the name of an orphaned runner is online or busy, and Mayfly did not start it; leaving it"
                            );
                        }
                        ours.into_iter().map(|runner| runner.id).collect()
                    }
                    Err(error) => return RemovalAttempt::Stays(error.to_string()),
                }
            }
        };
        for id in ids {
            let removed = server.delete_runner(&row.at.scope, &id).await;
            self.reach.note(&row.at, &removed, self.clock.now());
            count_removal(server, &removed);
            match removed {
                Ok(removed) => {
                    tracing::info!(vm.id = %row.vm_id, runner.id = %id, runner.name = %row.name, ?removed, "removed an orphaned runner");
                }
                Err(error) => {
                    tracing::debug!(vm.id = %row.vm_id, runner.id = %id, error = %error, "cannot remove an orphaned runner now");
                    return RemovalAttempt::Stays(error.to_string());
                }
            }
        }
        RemovalAttempt::Gone
    }
}

fn leaves_a_runner(change: &Change) -> bool {
    let vm = &change.vm;
    vm.spec.managed().is_some() && vm.attempt > 0 && is_over(vm.attempt, Some(vm)) && vm.state != State::Deleting
}
