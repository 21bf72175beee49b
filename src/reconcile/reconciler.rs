//! Starts and supervises the loops that vms need, and one task per live vm.

use std::{collections::HashSet, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    host::HostObserver,
    placement::Placement,
    presence::{Presence, ServiceHeartbeat},
    retention::Retention,
    runners::{OrphanedRunners, Reach, Registrar, RunnerRemoval, RunnerWatch, ServersAway},
    settings::Settings,
    sweep::Sweep,
    token_uses::TokenUseWriter,
    vms::{Provisioner, SpentBudgets, Steps, VmTask},
};
use crate::{
    domain::{State, Vm, VmId},
    parts::Parts,
    platform::tasks,
    store::{Ledger, Reader},
};

/// First pause after a failed read of the live vms.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

pub struct Reconciler {
    ledger: Ledger,
    reader: Reader,
    vm_task: Arc<VmTask>,
    host: HostObserver,
    heartbeat: ServiceHeartbeat,
    placement: Placement,
    sweep: Sweep,
    retention: Retention,
    away: ServersAway,
    orphans: OrphanedRunners,
    token_uses: TokenUseWriter,
}

impl Reconciler {
    pub fn new(parts: &Parts, settings: &Settings) -> Self {
        let (reach, presence, pace) = (Reach::default(), Presence::default(), settings.runners);
        let host = HostObserver::new(parts, settings.retry_backoff);
        let provisioner = Provisioner::new(parts, Registrar::new(parts, reach.clone()), settings);
        let removal = RunnerRemoval::new(parts, reach.clone(), pace);
        let steps = Steps::new(parts, host.clone(), provisioner, removal.clone(), settings);
        let budgets = SpentBudgets::new(removal, parts.clock.clone(), pace);
        let watch = RunnerWatch::new(parts, reach.clone(), pace);
        Self {
            ledger: parts.ledger.clone(),
            reader: parts.reader.clone(),
            vm_task: Arc::new(VmTask::new(parts, presence.clone(), host.clone(), steps, budgets, watch)),
            heartbeat: ServiceHeartbeat::new(parts, presence, settings.heartbeat.clone(), settings.beat_every),
            placement: Placement::new(parts, host.clone(), settings.capacity),
            sweep: Sweep::new(parts, host.clone(), settings.sweep_every),
            retention: Retention::new(parts, settings.keep_deleted),
            away: ServersAway::new(parts, reach.clone(), pace),
            orphans: OrphanedRunners::new(parts, reach, pace),
            token_uses: TokenUseWriter::new(parts),
            host,
        }
    }

    /// Runs until `shutdown`. Vms keep their state: the next start continues with them.
    pub async fn run(self, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        // Subscribes before it reads the rows, so that no vm between the two is missed.
        let mut changes = self.ledger.changes().subscribe();
        let mut faults = self.ledger.health().changes();
        let mut driven: HashSet<VmId> = HashSet::new();
        let (ended, mut endings) = mpsc::unbounded_channel();
        let spawn = |work: BoxFuture<'static, ()>| {
            let shutdown = shutdown.clone();
            tracker.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
        };
        let take_up = |driven: &mut HashSet<VmId>, vm: Vm| {
            if vm.state == State::Deleted || !driven.insert(vm.id()) {
                return;
            }
            let (vm_task, ended) = (self.vm_task.clone(), ended.clone());
            spawn(Box::pin(async move {
                let id = vm.id();
                // However the task ended, the row decides whether the vm is driven again.
                tasks::run_catching_panic("vm", vm_task.drive(vm)).await;
                let _ = ended.send(id);
            }));
        };

        // Before any budget is checked, and while guests can already report.
        if shutdown.run_until_cancelled(self.heartbeat.note_absence()).await.is_none() {
            return;
        }
        spawn(Box::pin(self.heartbeat.clone().beat_forever()));
        // The first probe may boot a guest and be slow; shutdown does not wait for it.
        if shutdown.run_until_cancelled(self.host.probe_drivers(false)).await.is_none() {
            return;
        }
        self.keep_loops_running(spawn);

        let mut read_rows = true;
        let mut first = true;
        let mut pause = FIRST_PAUSE;
        loop {
            if read_rows {
                match self.reader.live_vms().await {
                    Ok(vms) => {
                        if std::mem::take(&mut first) {
                            tracing::info!(vms = vms.len(), "continuing with the live vms");
                        }
                        for vm in vms {
                            self.ledger.changes().remind(&vm);
                            take_up(&mut driven, vm);
                        }
                        read_rows = false;
                        pause = FIRST_PAUSE;
                    }
                    Err(error) => {
                        tracing::error!(error = %error, "cannot read the live vms; retrying");
                        if shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
                            break;
                        }
                        pause = (pause * 2).min(LONGEST_PAUSE);
                        continue;
                    }
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(id) = endings.recv() => {
                    driven.remove(&id);
                    // The task may have ended although the vm is still live, so the rows are read again.
                    read_rows |= match self.reader.vm(id).await {
                        Ok(vm) => vm.is_some_and(|vm| vm.state != State::Deleted),
                        Err(_) => true,
                    };
                }
                // After a write with an unknown result, events may be wrong or missing; only the rows are reliable.
                Ok(()) = faults.changed() => read_rows = true,
                change = changes.recv() => match change {
                    Ok(change) => take_up(&mut driven, (*change.vm).clone()),
                    Err(RecvError::Lagged(_)) => read_rows = true,
                    Err(RecvError::Closed) => break,
                },
            }
        }
        tracker.close();
        tracker.wait().await;
        self.token_uses.write().await;
    }

    fn keep_loops_running(&self, spawn: impl Fn(BoxFuture<'static, ()>)) {
        let Self { placement, sweep, retention, away, orphans, token_uses, .. } = self;
        let (placement, sweep, retention) = (placement.clone(), sweep.clone(), retention.clone());
        let (pauses, probe, orphans, uses) = (away.clone(), away.clone(), orphans.clone(), token_uses.clone());
        spawn(Box::pin(tasks::keep_running("placement", move || placement.clone().place_forever())));
        spawn(Box::pin(tasks::keep_running("sweep", move || sweep.clone().sweep_forever())));
        spawn(Box::pin(tasks::keep_running("retention", move || retention.clone().retain_forever())));
        spawn(Box::pin(tasks::keep_running("pauses", move || pauses.clone().pause_forever())));
        spawn(Box::pin(tasks::keep_running("probe", move || probe.clone().probe_forever())));
        spawn(Box::pin(tasks::keep_running("uses of tokens", move || uses.clone().write_forever())));
        spawn(Box::pin(tasks::keep_running("orphaned runners", move || orphans.clone().remove_forever())));
    }
}
