//! The loop that runs what each vm owes.
//!
//! ```text
//! ledger ──change──▶ one task per live vm: load the row, run the step its state owes, apply the fact that came of it
//!        ──change──▶ placement: free slots to those who waited longest
//! timer  ─────────▶ sweep: instances against rows · retention · a look at the host
//! ```
//!
//! Every step is idempotent and rests on the row alone, so there is no recovery code: a restart starts the same tasks on the
//! same rows. A step whose vm moved on is dropped where it stands; what it had begun is found by the next step.

use std::{collections::HashSet, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::{broadcast::error::RecvError, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    domain::{
        State, VmId,
        host::{Capacity, HostView},
    },
    drivers::registry::Registry,
    service::Clock,
    store::{Ledger, Reader, Vault, logs::Logs},
    templates::Catalog,
};

mod drive;
mod host;
mod placement;
mod steps;
mod sweep;
mod timers;

#[derive(Clone, Debug)]
pub struct Settings {
    pub capacity: Capacity,
    /// Whether instances that Mayfly did not start count against the capacity.
    pub count_foreign: bool,
    /// Unix socket of the guest API, where a driver relays to it.
    pub guest_socket: PathBuf,
    /// The program that relays standard input and output to that socket; the path is appended.
    pub relay: Vec<String>,
    /// Base address of the guest API as guests see it.
    pub guest_url: String,
    /// Guests reach the guest API and nothing else.
    pub isolated: bool,
    /// First wait before a failed attempt is repeated; doubles each time, up to a minute.
    pub retry_backoff: Duration,
    pub sweep_every: Duration,
    pub keep_deleted: Duration,
}

/// Everything a step may use.
pub struct Reconciler {
    pub ledger: Ledger,
    pub reader: Reader,
    pub vault: Arc<Vault>,
    pub logs: Logs,
    pub catalog: Arc<Catalog>,
    pub drivers: Arc<Registry>,
    pub clock: Clock,
    pub settings: Settings,
    /// Where the host as last looked at is shown.
    pub board: watch::Sender<HostView>,
}

/// The board before the first look.
pub fn unobserved(capacity: Capacity, clock: &Clock) -> HostView {
    HostView { capacity, drivers: Vec::new(), instances: Vec::new(), observed_at: clock.now(), observed: false }
}

impl Reconciler {
    /// Runs until `shutdown`. Vms are left as they are: the next start takes them up.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tasks = TaskTracker::new();
        // Subscribed before the rows are read, so that no vm falls between the two.
        let mut changes = self.ledger.changes().subscribe();
        let mut driven: HashSet<VmId> = HashSet::new();
        let (ended, mut endings) = tokio::sync::mpsc::unbounded_channel();

        // A first probe may boot a guest and take its time; being told to stop does not wait for it.
        if shutdown.run_until_cancelled(self.look_at_drivers(false)).await.is_none() {
            return;
        }
        let spawn = |future| {
            let shutdown = shutdown.clone();
            tasks.spawn(async move { shutdown.run_until_cancelled_owned(future).await })
        };
        spawn(Box::pin(self.clone().place_forever()) as futures_util::future::BoxFuture<'static, ()>);
        spawn(Box::pin(self.clone().sweep_forever()));
        spawn(Box::pin(self.clone().retain_forever()));

        let mut rows = true;
        loop {
            if rows {
                rows = false;
                match self.reader.live_vms().await {
                    Ok(vms) => {
                        for vm in vms {
                            if driven.insert(vm.id()) {
                                let ended = ended.clone();
                                let this = self.clone();
                                spawn(Box::pin(async move {
                                    let id = vm.id();
                                    this.drive(vm).await;
                                    let _ = ended.send(id);
                                }));
                            }
                        }
                    }
                    Err(error) => {
                        tracing::error!(error = %error, "cannot read the live vms; trying again");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        rows = true;
                        continue;
                    }
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(id) = endings.recv() => {
                    driven.remove(&id);
                    // It may have been given up by its task while its row lives on: look again.
                    if let Ok(Some(vm)) = self.reader.vm(id).await {
                        rows |= vm.state != State::Deleted;
                    }
                }
                change = changes.recv() => match change {
                    Ok(change) => {
                        let vm = change.vm;
                        if vm.state != State::Deleted && driven.insert(vm.id()) {
                            let ended = ended.clone();
                            let this = self.clone();
                            spawn(Box::pin(async move {
                                let id = vm.id();
                                this.drive((*vm).clone()).await;
                                let _ = ended.send(id);
                            }));
                        }
                    }
                    Err(RecvError::Lagged(_)) => rows = true,
                    Err(RecvError::Closed) => break,
                },
            }
        }
        tasks.close();
        tasks.wait().await;
    }
}
