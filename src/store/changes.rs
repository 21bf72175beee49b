//! Notifies subscribers of committed changes.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, broadcast, watch};

use super::{Reader, Result};
use crate::{
    domain::{State, Vm, VmId, event::Recorded, pull::Pull, template_event::RecordedOfTemplate},
    platform::clock,
};

/// A committed event and the vm after it.
#[derive(Clone, Debug)]
pub struct Change {
    pub vm: Arc<Vm>,
    pub recorded: Arc<Recorded>,
}

/// The latest state of one vm.
type Bell = watch::Sender<Option<Arc<Vm>>>;

/// Notifications, published after the commit in the order of the ledger. A subscriber that falls behind gets `Lagged`
/// and reads the database instead: nothing is lost, because notifications only announce what the database contains.
#[derive(Clone)]
pub struct Changes {
    bell: broadcast::Sender<Change>,
    /// Separate, so that subscribers of vms are not woken by templates.
    templates: broadcast::Sender<Arc<RecordedOfTemplate>>,
    /// Pulls after each change.
    pulls: broadcast::Sender<Arc<Pull>>,
    /// One channel per watched vm: otherwise each event would wake all requests that wait for other vms.
    vms: Arc<Mutex<HashMap<VmId, Bell>>>,
    last_seq: Arc<AtomicI64>,
    signals: Arc<Signals>,
}

/// Signals with one subscriber each, which reads the whole table again. A signal that arrives while it is busy is
/// kept.
#[derive(Default)]
struct Signals {
    deliveries: Notify,
    pools: Notify,
    watches: Notify,
}

impl Changes {
    pub(super) fn new(last_seq: i64) -> Self {
        Self {
            bell: broadcast::channel(1024).0,
            templates: broadcast::channel(256).0,
            pulls: broadcast::channel(64).0,
            vms: Arc::default(),
            last_seq: Arc::new(AtomicI64::new(last_seq)),
            signals: Arc::default(),
        }
    }

    /// Subscribe *before* reading the state, otherwise a change in between is missed.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.bell.subscribe()
    }

    /// Events of templates; like `subscribe`.
    pub fn subscribe_templates(&self) -> broadcast::Receiver<Arc<RecordedOfTemplate>> {
        self.templates.subscribe()
    }

    /// Pulls after each change; like `subscribe`.
    pub fn subscribe_pulls(&self) -> broadcast::Receiver<Arc<Pull>> {
        self.pulls.subscribe()
    }

    /// One vm after each event from now on; `None` until there is one. Like `subscribe`: before reading.
    pub fn of(&self, id: VmId) -> watch::Receiver<Option<Arc<Vm>>> {
        let mut vms = self.vms();
        vms.retain(|_, bell| bell.receiver_count() > 0);
        vms.entry(id).or_insert_with(|| watch::Sender::new(None)).subscribe()
    }

    /// Returns when a webhook delivery was stored since the last call. For one subscriber, like the following two.
    pub async fn delivery_stored(&self) {
        self.signals.deliveries.notified().await;
    }

    /// Returns when a pool of the API was set or removed since the last call.
    pub async fn pools_changed(&self) {
        self.signals.pools.notified().await;
    }

    /// Returns when a watch was set or removed since the last call.
    pub async fn watches_changed(&self) {
        self.signals.watches.notified().await;
    }

    pub(super) fn signal_delivery(&self) {
        self.signals.deliveries.notify_one();
    }

    pub(super) fn signal_pools(&self) {
        self.signals.pools.notify_one();
    }

    pub(super) fn signal_watches(&self) {
        self.signals.watches.notify_one();
    }

    /// The vm once its generation is greater than `generation` or it is deleted, or its current state when `timeout`
    /// has passed. `None`: there is no such vm.
    pub async fn wait_vm(&self, reader: &Reader, id: VmId, generation: i64, timeout: Duration) -> Result<Option<Vm>> {
        let mut changes = self.of(id);
        let Some(mut vm) = reader.vm(id).await? else { return Ok(None) };
        let deadline = clock::monotonic() + timeout;
        while vm.generation <= generation && vm.state != State::Deleted {
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {
                    if let Some(now) = changes.borrow_and_update().as_deref()
                        && now.generation > vm.generation
                    {
                        vm = now.clone();
                    }
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        Ok(Some(vm))
    }

    fn vms(&self) -> MutexGuard<'_, HashMap<VmId, Bell>> {
        self.vms.lock()
    }

    pub fn last_seq(&self) -> i64 {
        self.last_seq.load(Ordering::Acquire)
    }

    pub(super) fn publish_template(&self, made: &Arc<RecordedOfTemplate>) {
        self.last_seq.fetch_max(made.seq, Ordering::AcqRel);
        let _ = self.templates.send(made.clone());
    }

    pub(super) fn publish_pull(&self, pull: &Arc<Pull>) {
        let _ = self.pulls.send(pull.clone());
    }

    /// Publishes a row to the watchers of that vm, in case a change was not published.
    pub fn remind(&self, vm: &Vm) {
        if let Some(bell) = self.vms().get(&vm.id()) {
            bell.send_if_modified(|newest| {
                let newer = newest.as_ref().is_none_or(|known| known.generation < vm.generation);
                if newer {
                    *newest = Some(Arc::new(vm.clone()));
                }
                newer
            });
        }
    }

    pub(super) fn publish(&self, made: &[Change]) {
        for change in made {
            self.last_seq.fetch_max(change.recorded.seq, Ordering::AcqRel);
            if let Some(bell) = self.vms().get(&change.vm.id()) {
                bell.send_replace(Some(change.vm.clone()));
            }
            let _ = self.bell.send(change.clone());
        }
    }
}
