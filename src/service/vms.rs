//! Reading vms, ending them, waiting for them, and their logs. Creating them is `admission::vms`.

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use crate::store::{
    logs::{CAP as LOG_CAP, LogSource},
    vms::Filter as VmFilter,
};
pub use crate::templates::progress::PullProgress;
use crate::{
    domain::{
        Announcer, Code, Error, Event, Result, RunnerStatus, State, TemplateSource, Vm, VmId, runner::RunnerKind,
        token::Caller,
    },
    drivers::registry::Registry,
    parts::Parts,
    platform::Clock,
    store::{Expect, Ledger, Reader, logs::Logs},
    templates::pull::Puller,
};

/// The answer to a DELETE.
pub struct EndRequested {
    pub vm: Arc<Vm>,
    /// `true`: the vm had ended before.
    pub was_deleted: bool,
}

#[derive(Clone)]
pub struct Vms {
    ledger: Ledger,
    reader: Reader,
    logs: Logs,
    drivers: Arc<Registry>,
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

    /// 1: it is next. 0: it is not in the queue.
    pub async fn queue_position(&self, vm: &Vm) -> Result<i64> {
        if vm.state == State::Queued { Ok(self.reader.queue_position(vm.id()).await?) } else { Ok(0) }
    }

    /// How far the image is that the vm waits for. `None`: it waits for none, or nothing is known yet.
    pub fn image_progress(&self, vm: &Vm) -> Option<PullProgress> {
        match vm.spec.source {
            TemplateSource::Awaited { .. } => self.puller.progress(&vm.id().to_string()),
            TemplateSource::Resolved(_) => None,
        }
    }

    /// Ends a vm, now or when its runner is done. See *DELETE, exactly* in the API guide.
    pub async fn end(&self, id: VmId, caller: &Caller, force: bool) -> Result<EndRequested> {
        // Its decision rests on the whole row, so it is made again if the row changed meanwhile. A vm has a bounded number of
        // states, and each turn of this loop needs a commit of somebody else.
        for _ in 0..64 {
            let vm = self.get(id).await?;
            let generation = vm.generation;
            if vm.state == State::Deleted {
                return Ok(EndRequested { vm: Arc::new(vm), was_deleted: true });
            }
            let Some(event) = ending(&vm, caller, force) else {
                return Ok(EndRequested { vm: Arc::new(vm), was_deleted: false });
            };
            // Its job has ended, so its guest was configured: that report was lost.
            let only_a_sign_of_life = matches!(event, Event::GuestConfigured);
            let applied = self.ledger.apply(id, Expect::Generation(generation), event, self.clock.now()).await?;
            if applied.as_expected && !only_a_sign_of_life {
                return Ok(EndRequested { vm: applied.vm, was_deleted: false });
            }
        }
        Err(Error::new(Code::StoreUnavailable, "the vm changed faster than it could be ended").retry_after(1))
    }

    /// The vm once its generation is greater than `generation`, or as it is when `timeout` has passed.
    pub async fn wait(&self, id: VmId, generation: i64, timeout: Duration) -> Result<Vm> {
        let waited = self.ledger.changes().wait_vm(&self.reader, id, generation, timeout).await?;
        waited.ok_or_else(|| no_vm(id))
    }

    /// The file that a vm's log is in; it may not exist (yet).
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
}

fn no_vm(id: VmId) -> Error {
    Error::new(Code::VmNotFound, format!("no vm has the id {id}"))
}

/// What a DELETE means for this vm; `None` when it is ending already and the call adds nothing.
fn ending(vm: &Vm, caller: &Caller, force: bool) -> Option<Event> {
    if vm.outcome.is_some() {
        return None;
    }
    match caller {
        Caller::Guest(_) => match vm.announced_by {
            Some(_) => None,
            None if matches!(vm.state, State::Booting | State::Configuring) => Some(Event::GuestConfigured),
            None => Some(Event::EndAnnounced { by: Announcer::Hook }),
        },
        Caller::Token { .. } if force => Some(Event::EndForced { by: Announcer::Admin }),
        Caller::Token { .. } => {
            if vm.state == State::Draining {
                return None;
            }
            let up = matches!(vm.state, State::Booting | State::Configuring | State::Running);
            // A command begins as soon as its guest may start it, and says so a moment later.
            let begins = vm.spec.runner == RunnerKind::Command && vm.runner_status == RunnerStatus::Registering;
            // A runner that GitHub may be giving a job this moment is taken away there first.
            let at_work = up && (vm.runner_status.may_hold_a_job() || begins || vm.spec.managed().is_some());
            Some(if at_work {
                Event::EndAnnounced { by: Announcer::Admin }
            } else {
                Event::EndForced { by: Announcer::Admin }
            })
        }
    }
}
