//! Runners at GitHub whose vm, or whose attempt of it, is over. Ours by their row; whose else they are is never touched.

use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::broadcast::error::RecvError, time::Instant};

use super::{Reconciler, leave::count_removal};
use crate::{
    domain::{RunnerStatus, State, Vm},
    runners::github::{Client, GitHubError, model},
    store::{Change, StoreError, github_runners::RunnerRow},
};

/// Without any news, all rows are looked at this often.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const AT_ONCE: usize = 4;
/// GitHub believes for a quarter of an hour that a runner is at work that was killed.
const PATIENCE: SignedDuration = SignedDuration::from_mins(20);
/// A call whose answer was lost may be carried out this much later.
const LATE: SignedDuration = SignedDuration::from_mins(2);

/// How far the removal of one ghost is.
struct Trying {
    since: Timestamp,
    next: Instant,
    pause: Duration,
    warned: bool,
}

enum Ghost {
    Gone,
    /// Asked again in a while; what GitHub said.
    Stays(String),
}

impl Reconciler {
    pub(in crate::reconcile) async fn remove_ghosts_forever(self: Arc<Self>) {
        let Some(github) = &self.github else { return pending().await };
        let mut changes = self.ledger.changes().subscribe();
        let mut links = self.reach.subscribe();
        let mut trying: HashMap<String, Trying> = HashMap::new();
        loop {
            links.borrow_and_update();
            let next = match self.remove_ghosts(github, &mut trying).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(error = %error, "runners that outlived their vms cannot be looked for; trying again");
                    Instant::now() + self.settings.github.first_retry
                }
            };
            let news = async {
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
                () = news => {}
                Ok(()) = links.changed() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Removes those that are due; returns when the next ones are.
    async fn remove_ghosts(
        &self,
        github: &Client,
        trying: &mut HashMap<String, Trying>,
    ) -> Result<Instant, StoreError> {
        let mut ghosts = Vec::new();
        for row in self.reader.github_runners().await? {
            let vm = self.reader.vm(row.vm_id).await?;
            if is_over(&row, vm.as_ref()) {
                ghosts.push((row, vm));
            }
        }
        trying.retain(|name, _| ghosts.iter().any(|(row, _)| row.name == *name));
        metrics::gauge!("mayfly_github_ghosts").set(ghosts.len() as f64);
        let now = Instant::now();
        let due = ghosts
            .into_iter()
            .filter(|(row, _)| trying.get(&row.name).is_none_or(|t| t.next <= now) && !self.reach.is_away(&row.scope));
        let asked: Vec<_> = stream::iter(due)
            .map(|(row, vm)| async move {
                let ghost = self.remove_ghost(github, &row, vm.as_ref()).await;
                (row, ghost)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (row, ghost) in asked {
            match ghost {
                Ghost::Gone => {
                    self.ledger.runner_gone(&row.name).await?;
                    trying.remove(&row.name);
                }
                Ghost::Stays(why) => self.again(trying, &row, &why),
            }
        }
        let soonest = trying.values().map(|t| t.next).min();
        Ok(soonest.map_or(Instant::now() + LOOK_EVERY, |next| next.min(Instant::now() + LOOK_EVERY)))
    }

    fn again(&self, trying: &mut HashMap<String, Trying>, row: &RunnerRow, why: &str) {
        let (pace, now) = (&self.settings.github, self.clock.now());
        let t = trying.entry(row.name.clone()).or_insert_with(|| Trying {
            since: now,
            next: Instant::now(),
            pause: pace.first_retry,
            warned: false,
        });
        t.next = Instant::now() + t.pause;
        t.pause = pace.longer(t.pause);
        if !t.warned && now.duration_since(t.since) >= PATIENCE {
            t.warned = true;
            tracing::warn!(
                vm.id = %row.vm_id, runner.name = %row.name, scope = %row.scope.slug(), since = %t.since, why,
                "GitHub does not let go of a runner whose vm is gone; it is asked again and again"
            );
        }
    }

    async fn remove_ghost(&self, github: &Client, row: &RunnerRow, vm: Option<&Vm>) -> Ghost {
        // GitHub said so already.
        let said = vm.is_some_and(|vm| {
            vm.runner_status == RunnerStatus::Gone
                && vm.registered.as_ref().is_some_and(|r| Some(r.runner_id) == row.runner_id && r.name == row.name)
        });
        if said {
            return Ghost::Gone;
        }
        let id = match row.runner_id {
            Some(id) => id,
            None => {
                let found = github.find_runner_by_name(&row.scope, &row.name).await;
                self.reach.note(&row.scope, &found, self.clock.now());
                match found {
                    Ok(Some(r)) if r.status == model::RunnerStatus::Offline && !r.busy => r.id,
                    // Nobody was given the configuration of ours.
                    Ok(Some(r)) => {
                        tracing::warn!(
                            vm.id = %row.vm_id, runner.id = r.id, runner.name = %row.name,
                            "a runner with the name of one of ours is at work and was not started from here; it is left alone"
                        );
                        return Ghost::Gone;
                    }
                    Ok(None) if self.clock.now().duration_since(row.asked_at) > LATE => return Ghost::Gone,
                    Ok(None) => return Ghost::Stays("it may come yet".to_owned()),
                    Err(error) => return Ghost::Stays(error.to_string()),
                }
            }
        };
        let removed = github.delete_runner(&row.scope, id).await;
        self.reach.note(&row.scope, &removed, self.clock.now());
        count_removal(&removed);
        match removed {
            Ok(removed) => {
                tracing::info!(vm.id = %row.vm_id, runner.id = id, runner.name = %row.name, ?removed, "no runner of the vm is left at GitHub");
                Ghost::Gone
            }
            Err(error @ GitHubError::RunnerBusy { .. }) => {
                tracing::debug!(vm.id = %row.vm_id, runner.id = id, "GitHub believes that the runner is at work");
                Ghost::Stays(error.to_string())
            }
            Err(error) => {
                tracing::warn!(vm.id = %row.vm_id, runner.id = id, error = %error, "a runner whose vm is gone cannot be removed now");
                Ghost::Stays(error.to_string())
            }
        }
    }
}

/// Whether nobody will need this runner any more.
fn is_over(row: &RunnerRow, vm: Option<&Vm>) -> bool {
    vm.is_none_or(|vm| vm.attempt != row.attempt || ended(vm.state))
}

fn ended(state: State) -> bool {
    match state {
        State::Queued | State::Stopping | State::Deleting | State::Deleted => true,
        State::Cloning | State::Booting | State::Configuring | State::Running | State::Draining => false,
    }
}

fn leaves_a_runner(change: &Change) -> bool {
    let vm = &change.vm;
    vm.draft.managed().is_some() && vm.attempt > 0 && ended(vm.state) && vm.state != State::Deleting
}
