//! Shows, ends and awaits vms, and finds their logs. `admission::vms` creates them.

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use crate::store::{
    logs::{CAP as LOG_CAP, LogSource},
    vm_queries::{Filter as VmFilter, QueuePlace},
};
pub use crate::templates::progress::PullProgress;
use crate::{
    domain::{
        Announcer, Code, Error, Event, QueueReason, Result, RunnerStatus, State, TemplateSource, Vm, VmId,
        runner::RunnerKind,
        token::{Caller, CallerToken},
    },
    drivers::registry::DriverRegistry,
    parts::Parts,
    platform::Clock,
    store::{Expect, Ledger, Reader, logs::Logs},
    templates::pull::Puller,
};
use jiff::Timestamp;

/// The result of a DELETE.
pub struct EndRequested {
    pub vm: Arc<Vm>,
    /// `true`: the vm had already ended.
    pub was_deleted: bool,
}

#[derive(Clone)]
pub struct Vms {
    ledger: Ledger,
    reader: Reader,
    logs: Logs,
    drivers: Arc<DriverRegistry>,
    puller: Puller,
    clock: Clock,
}

impl Vms {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, logs, drivers, puller, clock, .. } = parts.clone();
        Self { ledger, reader, logs, drivers, puller, clock }
    }

    pub async fn get(&self, id: VmId) -> Result<Vm> {
        self.find(id).await?.ok_or_else(|| no_vm(id))
    }

    pub async fn find(&self, id: VmId) -> Result<Option<Vm>> {
        Ok(self.reader.vm(id).await?)
    }

    /// Newest first.
    pub async fn list(&self, filter: &VmFilter) -> Result<Vec<Vm>> {
        Ok(self.reader.vms(filter).await?)
    }

    /// All zeros if the vm is not queued. `kept_slots` is 0 if it waits for something other than a slot.
    pub async fn queue_place(&self, vm: &Vm) -> Result<QueuePlace> {
        let Some(queue) = &vm.queue else { return Ok(QueuePlace::default()) };
        let place = self.reader.queue_place(vm.id()).await?;
        Ok(match queue.reason {
            QueueReason::Slot => place,
            QueueReason::Template | QueueReason::Host | QueueReason::Backoff => QueuePlace { kept_slots: 0, ..place },
        })
    }

    /// Progress of the image that the vm waits for. `None`: it does not wait for one, or nothing is known yet.
    pub fn image_progress(&self, vm: &Vm) -> Option<PullProgress> {
        match vm.spec.source {
            TemplateSource::Awaited { .. } => self.puller.progress(&vm.id().to_string()),
            TemplateSource::Resolved(_) => None,
        }
    }

    /// Ends a vm, at once or when its runner has finished. See *DELETE, exactly* in the API guide.
    pub async fn end(&self, id: VmId, caller: &Caller, force: bool) -> Result<EndRequested> {
        // The decision depends on the whole row, so it is repeated if the row changed meanwhile. Each iteration needs
        // another commit for this vm, and a vm has a bounded number of states.
        for _ in 0..64 {
            let vm = self.get(id).await?;
            if let Caller::Token(token) = caller {
                own(&vm, token)?;
            }
            let generation = vm.generation;
            if vm.state == State::Deleted {
                return Ok(EndRequested { vm: Arc::new(vm), was_deleted: true });
            }
            let Some(event) = ending(&vm, caller, force) else {
                return Ok(EndRequested { vm: Arc::new(vm), was_deleted: false });
            };
            // The guest's job has ended, so the guest was configured: that report was lost.
            let only_a_sign_of_life = matches!(event, Event::GuestConfigured);
            let applied = self.ledger.apply(id, Expect::Generation(generation), event, self.clock.now()).await?;
            if applied.as_expected && !only_a_sign_of_life {
                return Ok(EndRequested { vm: applied.vm, was_deleted: false });
            }
        }
        Err(Error::new(Code::StoreUnavailable, "the vm changed faster than it could be ended").retry_after(1))
    }

    /// The vm once its generation is greater than `generation`, or its current state when `timeout` has passed.
    pub async fn wait(&self, id: VmId, generation: i64, timeout: Duration) -> Result<Vm> {
        let waited = self.ledger.changes().wait_vm(&self.reader, id, generation, timeout).await?;
        waited.ok_or_else(|| no_vm(id))
    }

    /// Refuses vms of others to a token with limits.
    pub async fn check_own(&self, id: VmId, token: &CallerToken) -> Result<()> {
        own(&self.get(id).await?, token)
    }

    /// The file of a vm's log; it may not exist (yet).
    pub async fn log_file(&self, id: VmId, source: LogSource) -> Result<PathBuf> {
        let vm = self.get(id).await?;
        if source == LogSource::Console
            && vm.state.holds_slot()
            && let Some(spec) = vm.spec.resolved()
            && let Some(driver) = self.drivers.get(&spec.driver)
            && let Some(live) = driver.console_log(&vm.instance())
            && tokio::fs::try_exists(&live).await.unwrap_or(false)
        {
            return Ok(live);
        }
        Ok(self.logs.path(id, source))
    }

    /// The byte of a log at which what was written since then begins; more than its length if nothing was.
    pub async fn log_offset(&self, id: VmId, source: LogSource, since: Timestamp) -> Result<u64> {
        self.logs.offset(id, source, since).await.map_err(Error::internal)
    }
}

/// A token with limits ends, and reads the logs of, only vms that were created with it.
fn own(vm: &Vm, token: &CallerToken) -> Result<()> {
    if token.limits.is_none() || vm.spec.created_by == Some(token.id) {
        return Ok(());
    }
    let by = match vm.spec.created_by {
        Some(id) => format!("with the token {id}"),
        None => "without a token".to_owned(),
    };
    Err(Error::new(Code::AuthVmForeign, format!("the vm {} was created {by}, and this token has limits", vm.spec.name)))
}

fn no_vm(id: VmId) -> Error {
    Error::new(Code::VmNotFound, format!("no vm has the id {id}"))
}

/// The event that a DELETE causes for this vm; `None` if the vm is already ending and the call changes nothing.
fn ending(vm: &Vm, caller: &Caller, force: bool) -> Option<Event> {
    match (vm.state, caller) {
        // It has ended, and its guest is kept for debugging, which ends now.
        (State::Kept, Caller::Token(_)) => return Some(Event::EndForced { by: Announcer::Admin }),
        _ if vm.outcome.is_some() => return None,
        _ => {}
    }
    match caller {
        Caller::Guest(..) => match vm.announced_by {
            Some(_) => None,
            None if matches!(vm.state, State::Booting | State::Configuring) => Some(Event::GuestConfigured),
            None => Some(Event::EndAnnounced { by: Announcer::Hook }),
        },
        Caller::Token(_) if force => Some(Event::EndForced { by: Announcer::Admin }),
        Caller::Token(_) => {
            if vm.state == State::Draining {
                return None;
            }
            let up = matches!(vm.state, State::Booting | State::Configuring | State::Running);
            // A command starts as soon as its guest is permitted to, and its report arrives a moment later.
            let begins = vm.spec.runner == RunnerKind::Command && vm.runner_status == RunnerStatus::Registering;
            // A managed runner may be getting a job at this moment, so it is removed from its CI server first.
            let at_work = up && (vm.runner_status.may_hold_a_job() || begins || vm.spec.managed().is_some());
            Some(if at_work {
                Event::EndAnnounced { by: Announcer::Admin }
            } else {
                Event::EndForced { by: Announcer::Admin }
            })
        }
    }
}
