//! Removes the runner of a live vm from its CI server before its guest is destroyed.

use super::{
    pace::Pace,
    reach::Reach,
    record::{record, runner_name},
};
use crate::{
    domain::{Announcer, EndProof, Event, RunnerStatus, Vm, runner::RunnerFact},
    parts::Parts,
    platform::Clock,
    sources::{CiServer, SourceError, SourceErrorKind, Sources, runner::Removed},
    store::{Ledger, Reader},
};

/// Result of asking a server to remove a runner.
pub(in crate::reconcile) enum Removal {
    /// The server has no runner of this vm, so it cannot get a job.
    Gone,
    Busy,
    /// The server did not answer.
    Unknown,
}

#[derive(Clone)]
pub(in crate::reconcile) struct RunnerRemoval {
    ledger: Ledger,
    reader: Reader,
    sources: Sources,
    reach: Reach,
    clock: Clock,
    pace: Pace,
}

impl RunnerRemoval {
    pub fn new(parts: &Parts, reach: Reach, pace: Pace) -> Self {
        let Parts { ledger, reader, sources, clock, .. } = parts.clone();
        Self { ledger, reader, sources, reach, clock, pace }
    }

    /// For a vm whose end was requested by an admin or a pool: returns once the server has removed the runner. Never
    /// returns if the runner has a job: then the end of the job ends the vm.
    pub async fn dismissed(&self, vm: &Vm) -> Event {
        let asked = matches!(vm.announced_by, Some(Announcer::Admin | Announcer::Pool));
        let done = matches!(vm.runner_status, RunnerStatus::Busy | RunnerStatus::Finished | RunnerStatus::Gone);
        if !asked || done || vm.spec.managed().is_none() {
            return std::future::pending().await;
        }
        let mut pause = self.pace.first_retry;
        loop {
            match self.remove(vm).await {
                Removal::Gone => return deregistered(),
                Removal::Busy => {
                    tracing::info!(vm.id = %vm.id(), "the runner has a job; the vm ends after the job");
                    match record(&self.ledger, &self.clock, vm, Event::RunnerChanged { fact: RunnerFact::JobStarted })
                        .await
                    {
                        Ok(_) => return std::future::pending().await,
                        Err(error) => {
                            tracing::error!(vm.id = %vm.id(), error = %error, "cannot record the runner's state");
                        }
                    }
                }
                Removal::Unknown => {}
            }
            tokio::time::sleep(pause).await;
            pause = self.pace.longer(pause);
        }
    }

    /// Asks the server once to remove the runner of this attempt.
    pub async fn remove(&self, vm: &Vm) -> Removal {
        let Some(runner) = vm.spec.managed() else { return Removal::Gone };
        let name = runner_name(vm);
        let id = match self.reader.runner(&name).await {
            Ok(Some(row)) => row.runner_id,
            Ok(None) => None,
            Err(error) => {
                tracing::error!(vm.id = %vm.id(), error = %error, "cannot read the vm's runner from the database");
                return Removal::Unknown;
            }
        };
        // A runner whose configuration no guest has takes no job; `orphaned_runners` removes it after the vm has
        // ended.
        let Some(id) = id else { return Removal::Gone };
        let Some(server) = self.sources.server(&runner.source) else {
            tracing::warn!(vm.id = %vm.id(), job.source = %runner.source, "cannot remove the runner: no credentials for its source are configured");
            return Removal::Unknown;
        };
        let removed = server.delete_runner(&runner.scope, &id).await;
        self.reach.note(&runner.source_scope(), &removed, self.clock.now());
        count_removal(server, &removed);
        match removed {
            Ok(_) => {
                tracing::info!(vm.id = %vm.id(), runner.id = %id, "removed the runner from its CI server");
                Removal::Gone
            }
            Err(error) if error.kind == SourceErrorKind::RunnerBusy => {
                // A busy runner is registered. Recording this makes its later absence count as the end of its job.
                match self.ledger.runner_seen(&name, self.clock.now()).await {
                    Ok(()) => Removal::Busy,
                    Err(error) => {
                        tracing::error!(vm.id = %vm.id(), error = %error, "cannot record the runner's state");
                        Removal::Unknown
                    }
                }
            }
            Err(error) => {
                tracing::warn!(vm.id = %vm.id(), runner.id = %id, error = %error, "cannot remove the runner from its CI server, or find out whether it has a job");
                Removal::Unknown
            }
        }
    }
}

/// The server removed the runner, so no job can reach it.
pub(in crate::reconcile) fn deregistered() -> Event {
    Event::EndProven { proof: EndProof::Deregistered, exit_code: None }
}

pub(super) fn count_removal(server: &CiServer, removed: &Result<Removed, SourceError>) {
    let result = match removed {
        Ok(Removed::Now) => "removed",
        Ok(Removed::Before) => "absent",
        Err(error) if error.kind == SourceErrorKind::RunnerBusy => "busy",
        Err(_) => "failed",
    };
    metrics::counter!("mayfly_runner_removals_total", "source" => server.name().to_string(), "result" => result)
        .increment(1);
}
