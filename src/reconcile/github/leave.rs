//! No guest is destroyed whose runner GitHub may be giving a job this moment: GitHub is asked to take the runner away first,
//! and refuses if it has one.

use super::{Reconciler, runner_name, watch::EXTENSION};
use crate::{
    domain::{Announcer, Budget, Code, EndProof, Event, Fault, RunnerStatus, Vm, runner::RunnerFact},
    reconcile::drive::attempt_failed,
    sources::github::{GitHubError, Removed},
};

/// What came of asking GitHub to take a runner away.
enum Left {
    /// It has none of this vm: no job can reach it.
    Gone,
    Busy,
    /// GitHub did not say.
    Unknown,
}

impl Reconciler {
    /// What it means that this budget is spent. Where GitHub has to be asked and is away, it is asked until it answers.
    pub(in crate::reconcile) async fn spent(&self, vm: &Vm, budget: Budget) -> Event {
        let mut pause = self.settings.github.first_retry;
        loop {
            let left = match budget {
                // Before there is a guest, and after all patience.
                Budget::Queue | Budget::Clone | Budget::Lifetime => Left::Gone,
                Budget::Boot | Budget::Configure | Budget::Registration | Budget::Idle | Budget::Drain => {
                    self.take_away(vm).await
                }
            };
            let longer = vm.drain_cap() > self.clock.now();
            match (budget, left) {
                (Budget::Drain, Left::Gone) => {
                    return match vm.announced_by {
                        Some(Announcer::Admin | Announcer::Pool) if vm.draft.managed().is_some() => deregistered(),
                        Some(_) | None => Event::BudgetSpent { budget },
                    };
                }
                (Budget::Drain, Left::Busy) if longer => return self.extension(),
                // While GitHub is away, no result can be sent to it; and who had no job may have been given one since.
                (Budget::Drain, Left::Unknown)
                    if longer
                        && (vm.runner_status == RunnerStatus::Busy || vm.announced_by == Some(Announcer::Pool)) =>
                {
                    return self.extension();
                }
                (Budget::Drain, Left::Busy | Left::Unknown) => return Event::BudgetSpent { budget },
                (Budget::Boot | Budget::Configure, Left::Busy) => return Event::GuestConfigured,
                (Budget::Clone | Budget::Boot | Budget::Configure, Left::Gone) => {
                    return self.attempt_spent(vm, budget);
                }
                (Budget::Queue | Budget::Registration | Budget::Idle | Budget::Lifetime, Left::Gone) => {
                    return Event::BudgetSpent { budget };
                }
                (_, Left::Busy) => return Event::RunnerChanged { fact: RunnerFact::JobStarted },
                (_, Left::Unknown) => {}
            }
            tokio::time::sleep(pause).await;
            pause = self.settings.github.longer(pause);
        }
    }

    fn extension(&self) -> Event {
        Event::DrainExtended { until: self.clock.now() + EXTENSION }
    }

    fn attempt_spent(&self, vm: &Vm, budget: Budget) -> Event {
        let detail = match &vm.last_fault {
            Some(fault) if fault.at >= vm.entered_at => format!("{}; last: {}", budget.code().title(), fault.detail),
            _ => budget.code().title().to_owned(),
        };
        attempt_failed(vm, Fault { code: budget.code(), detail, at: self.clock.now() })
    }

    /// For a vm that somebody other than its own hook wants gone: returns once GitHub has taken its runner away. Never, if the
    /// runner has a job: then the vm ends when that does.
    pub(in crate::reconcile) async fn dismissed(&self, vm: &Vm) -> Event {
        let asked = matches!(vm.announced_by, Some(Announcer::Admin | Announcer::Pool));
        let done = matches!(vm.runner_status, RunnerStatus::Busy | RunnerStatus::Finished | RunnerStatus::Gone);
        if !asked || done || vm.draft.managed().is_none() {
            return std::future::pending().await;
        }
        let mut pause = self.settings.github.first_retry;
        loop {
            match self.take_away(vm).await {
                Left::Gone => return deregistered(),
                Left::Busy => {
                    tracing::info!(vm.id = %vm.id(), "the runner has a job: the vm ends when that does");
                    match self.tell(vm, Event::RunnerChanged { fact: RunnerFact::JobStarted }).await {
                        Ok(_) => return std::future::pending().await,
                        Err(error) => {
                            tracing::error!(vm.id = %vm.id(), error = %error, "what GitHub says cannot be noted");
                        }
                    }
                }
                Left::Unknown => {}
            }
            tokio::time::sleep(pause).await;
            pause = self.settings.github.longer(pause);
        }
    }

    async fn take_away(&self, vm: &Vm) -> Left {
        let Some(runner) = vm.draft.managed() else { return Left::Gone };
        let name = runner_name(vm);
        let id = match self.reader.github_runner(&name).await {
            Ok(Some(row)) => row.runner_id,
            Ok(None) => None,
            Err(error) => {
                tracing::error!(vm.id = %vm.id(), error = %error, "cannot read the vm's runner");
                return Left::Unknown;
            }
        };
        // One whose configuration nobody has takes no job; it is a ghost once the vm is gone.
        let Some(id) = id else { return Left::Gone };
        let Some(github) = &self.github else {
            tracing::warn!(vm.id = %vm.id(), code = Code::GitHubNotConfigured.slug(), "GitHub cannot be asked to take the runner away");
            return Left::Unknown;
        };
        let removed = github.delete_runner(&runner.scope, id).await;
        self.reach.note(&runner.scope, &removed, self.clock.now());
        count_removal(&removed);
        match removed {
            Ok(_) => {
                tracing::info!(vm.id = %vm.id(), runner.id = id, "GitHub took the runner away");
                Left::Gone
            }
            Err(GitHubError::RunnerBusy { .. }) => {
                // Whoever has a job was there: from now on its absence is its end.
                match self.ledger.runner_seen(&name, self.clock.now()).await {
                    Ok(()) => Left::Busy,
                    Err(error) => {
                        tracing::error!(vm.id = %vm.id(), error = %error, "what GitHub says cannot be noted");
                        Left::Unknown
                    }
                }
            }
            Err(error) => {
                tracing::warn!(vm.id = %vm.id(), runner.id = id, error = %error, "GitHub does not say whether the runner has a job");
                Left::Unknown
            }
        }
    }
}

fn deregistered() -> Event {
    Event::EndProven { proof: EndProof::Deregistered, exit_code: None }
}

pub(super) fn count_removal(removed: &Result<Removed, GitHubError>) {
    let result = match removed {
        Ok(Removed::Now) => "removed",
        Ok(Removed::Before) => "absent",
        Err(GitHubError::RunnerBusy { .. }) => "busy",
        Err(_) => "failed",
    };
    metrics::counter!("mayfly_github_removals_total", "result" => result).increment(1);
}
