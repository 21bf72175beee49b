//! Whether GitHub answers, scope by scope, and the budgets that stand still while it does not.

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    sync::Arc,
};

use jiff::Timestamp;
use tokio::sync::{broadcast::error::RecvError, watch};

use super::Reconciler;
use crate::{
    domain::{Event, RunnerStatus, Scope, State, Vm},
    sources::github::GitHubError,
    store::{Expect, StoreError},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// `until`: a limit was met that ends then. Other calls may have limits of their own and go well meanwhile.
    Away {
        until: Option<Timestamp>,
    },
}

pub(super) type Links = HashMap<Scope, Link>;

/// What the last answers said of GitHub: limits, permissions and repositories differ by scope.
#[derive(Debug, Default)]
pub struct Reach {
    links: watch::Sender<Links>,
}

impl Reach {
    /// Takes note of how a call ended.
    pub(super) fn note<T>(&self, scope: &Scope, result: &Result<T, GitHubError>, now: Timestamp) {
        let link = match result {
            Err(GitHubError::RateLimited { until, .. }) => Link::Away { until: Some(*until) },
            // What cannot be read was said by something in GitHub's place.
            Err(GitHubError::Unavailable { .. } | GitHubError::Unparsable { .. }) => Link::Away { until: None },
            // Nothing was sent.
            Err(GitHubError::Settings { .. }) => return,
            // A refusal is an answer.
            Ok(_)
            | Err(
                GitHubError::BadCredentials { .. }
                | GitHubError::MissingPermission { .. }
                | GitHubError::NotVisible { .. }
                | GitHubError::RunnerBusy { .. }
                | GitHubError::NameTaken { .. }
                | GitHubError::Refused { .. },
            ) => Link::Up,
        };
        self.links.send_if_modified(|links| {
            let known = links.get(scope).copied();
            let next = match (known, link) {
                (Some(Link::Away { until: Some(until) }), Link::Up) if until > now => return false,
                (Some(Link::Away { until: old }), Link::Away { until: new }) => Link::Away { until: old.max(new) },
                (_, next) => next,
            };
            if known == Some(next) {
                return false;
            }
            let scope_name = scope.slug();
            match (known, next, result) {
                (Some(Link::Away { .. }), Link::Up, _) => tracing::info!(scope = %scope_name, "GitHub answers again"),
                (None | Some(Link::Up), Link::Away { .. }, Err(error)) => {
                    tracing::warn!(scope = %scope_name, error = %error, "GitHub is away: budgets that wait for it stand still");
                }
                _ => {}
            }
            links.insert(scope.clone(), next);
            true
        });
    }

    /// Budgets stood still when the service ended: so they do until GitHub answers.
    fn doubt(&self, scope: &Scope) {
        self.links.send_if_modified(|links| {
            let new = !links.contains_key(scope);
            if new {
                links.insert(scope.clone(), Link::Away { until: None });
            }
            new
        });
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<Links> {
        self.links.subscribe()
    }

    pub(super) fn is_away(&self, scope: &Scope) -> bool {
        matches!(self.links.borrow().get(scope), Some(Link::Away { .. }))
    }

    /// Returns once GitHub answers for this scope, as far as is known.
    pub(super) async fn back(&self, scope: &Scope) {
        let mut links = self.subscribe();
        let answers = |links: &Links| !matches!(links.get(scope), Some(Link::Away { .. }));
        if links.wait_for(answers).await.is_err() {
            pending().await
        }
    }
}

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

impl Reconciler {
    /// Stops the budgets of vms that wait for GitHub while it is away, and lets them run again.
    pub(in crate::reconcile) async fn pause_forever(self: Arc<Self>) {
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
                        if let (true, Some(runner), Some(_)) = (first, vm.draft.managed(), vm.paused_at) {
                            self.reach.doubt(&runner.scope);
                        }
                        redo |= !self.pause_or_resume(vm, &known).await;
                    }
                    first = false;
                }
                Err(error) => {
                    tracing::error!(error = %error, "cannot read the live vms; trying again");
                    tokio::time::sleep(self.settings.github.first_retry).await;
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
                    () = tokio::time::sleep(self.settings.github.first_retry), if redo => break,
                }
            }
        }
    }

    /// `false`: it could not be written down.
    async fn pause_or_resume(&self, vm: &Vm, links: &Links) -> bool {
        let Some(runner) = vm.draft.managed() else { return true };
        // Without a way to GitHub there is nothing to wait for.
        let link = if self.github.is_some() { links.get(&runner.scope).copied() } else { Some(Link::Up) };
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
                tracing::error!(vm.id = %vm.id(), error = %error, "cannot note whether the vm waits for GitHub");
                // A vm that is gone, or that the table refuses this to, will not take it later either.
                matches!(error, StoreError::Refused(_))
            }
        }
    }

    /// Asks GitHub whether it is back, where it was away.
    pub(in crate::reconcile) async fn probe_forever(self: Arc<Self>) {
        let Some(github) = &self.github else { return pending().await };
        let mut links = self.reach.subscribe();
        let mut pause = self.settings.github.first_retry;
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
                pause = self.settings.github.first_retry;
                if links.changed().await.is_err() {
                    return pending().await;
                }
                continue;
            }
            tokio::time::sleep(pause).await;
            pause = self.settings.github.longer(pause);
            for (scope, until) in away {
                if until.is_none_or(|until| until <= self.clock.now()) {
                    let visible = github.visible(&scope).await;
                    self.reach.note(&scope, &visible, self.clock.now());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::github::GitHubLimit;

    #[test]
    fn a_limit_is_not_over_because_other_calls_go_well() {
        let (reach, scope) = (Reach::default(), Scope::organization("acme").unwrap());
        let at = |second| Timestamp::from_second(second).unwrap();
        let limited = |until| GitHubError::RateLimited {
            server: "x".into(),
            what: "x".into(),
            limit: GitHubLimit::Primary,
            until: at(until),
        };
        assert!(!reach.is_away(&scope));
        reach.note::<()>(&scope, &Err(limited(50)), at(0));
        let broken =
            || GitHubError::Unavailable { server: "x".into(), what: "x".into(), cause: "x".into(), sent: true };
        reach.note::<()>(&scope, &Err(broken()), at(1));
        reach.note(&scope, &Ok(()), at(49));
        assert!(reach.is_away(&scope) && !reach.is_away(&Scope::organization("other").unwrap()));
        reach.note(&scope, &Ok(()), at(50));
        assert!(!reach.is_away(&scope));
        reach.note::<()>(&scope, &Err(broken()), at(60));
        assert!(reach.is_away(&scope));
        reach.note::<()>(&scope, &Err(GitHubError::RunnerBusy { server: "x".into(), runner: 1 }), at(61));
        assert!(!reach.is_away(&scope), "a refusal is an answer");
    }
}
