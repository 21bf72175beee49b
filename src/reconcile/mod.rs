//! The loop that runs what each vm owes.
//!
//! ```text
//! ledger ──change──▶ one task per live vm: load the row, run the step its state owes, apply the fact that came of it
//!        ──change──▶ placement: free slots to those who waited longest
//! timer  ─────────▶ sweep: instances against rows · retention · a look at the host
//! GitHub ─────────▶ what its runners do · runners that outlived their vms · whether it answers
//! ```
//!
//! Every step is idempotent and rests on the row alone, so there is no recovery code: a restart starts the same tasks on the
//! same rows. A step whose vm moved on is dropped where it stands; what it had begun is found by the next step.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    domain::{Budgets, State, Vm, VmId, host::Capacity},
    drivers::registry::Registry,
    platform::{Clock, tasks},
    service::hosts::HostInspector,
    sources::github::{GitHubClient, runner_archives::RunnerArchives},
    store::{Ledger, Reader, Vault, logs::Logs},
    templates::{Catalog, pull::Puller},
};

mod drive;
mod github;
mod handover;
mod host;
mod observe;
mod obtain;
mod paused;
mod placement;
mod presence;
mod start;
mod steps;
mod sweep;
mod timers;

pub use github::{Pace, Reach};
pub use presence::Presence;
pub use start::Starts;

/// Between two tries to read the rows of live vms.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct Settings {
    pub capacity: Capacity,
    /// Unix socket of the guest API, where a driver relays to it.
    pub guest_socket: PathBuf,
    /// The program that relays standard input and output to that socket; the path is appended.
    pub relay: Vec<String>,
    /// Driver → base address of the guest API as its guests see it.
    pub guest_urls: BTreeMap<String, String>,
    /// Guests reach the guest API and nothing else.
    pub isolated: bool,
    /// First wait before a failed attempt is repeated; doubles each time, up to a minute.
    pub retry_backoff: Duration,
    /// How long a guest with a runner may stay paused for a full disk before it is given up.
    pub disk_full: Duration,
    pub sweep_every: Duration,
    /// The file that says when the service was there last, and how often it is written.
    pub heartbeat: PathBuf,
    pub beat_every: Duration,
    pub keep_deleted: Duration,
    /// Of templates that do not say otherwise.
    pub budgets: Budgets,
    /// How often GitHub is asked.
    pub github: Pace,
    pub runner: RunnerSettings,
}

/// GitHub's runner in the guests.
#[derive(Clone, Debug, Default)]
pub struct RunnerSettings {
    /// Where people use GitHub.
    pub github_web: String,
    /// `None`: in the usual places.
    pub directory: Option<String>,
    pub minimum_version: String,
}

/// Everything a step may use.
pub struct Reconciler {
    pub ledger: Ledger,
    pub reader: Reader,
    pub vault: Arc<Vault>,
    pub logs: Logs,
    pub catalog: Arc<Catalog>,
    pub puller: Puller,
    pub drivers: Arc<Registry>,
    pub programs: RunnerArchives,
    /// Who we are to GitHub, where somebody said.
    pub github: Option<Arc<GitHubClient>>,
    /// Whether it answers.
    pub reach: Reach,
    /// Whether this service was there all the time.
    pub presence: Presence,
    pub clock: Clock,
    pub settings: Settings,
    /// The host as last looked at, and new looks at it.
    pub host: HostInspector,
    /// The guests that are being started.
    pub starts: Starts,
}

impl Reconciler {
    /// Runs until `shutdown`. Vms are left as they are: the next start takes them up.
    pub async fn run(self: Arc<Self>, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        // Subscribed before the rows are read, so that no vm falls between the two.
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
            let (this, ended) = (self.clone(), ended.clone());
            spawn(Box::pin(async move {
                let id = vm.id();
                // Whatever became of it, the row decides whether the vm is taken up again.
                tasks::survived("vm", this.drive(vm)).await;
                let _ = ended.send(id);
            }));
        };

        // Before anything looks at a budget, and while guests can report already.
        if shutdown.run_until_cancelled(self.note_absence()).await.is_none() {
            return;
        }
        spawn(Box::pin(self.clone().beat_forever()));
        // A first probe may boot a guest and take its time; being told to stop does not wait for it.
        if shutdown.run_until_cancelled(self.look_at_drivers(false)).await.is_none() {
            return;
        }
        let keep = |name: &'static str, start: fn(Arc<Self>) -> BoxFuture<'static, ()>| {
            let this = self.clone();
            spawn(Box::pin(tasks::keep_running(name, move || start(this.clone()))));
        };
        keep("placement", |this| Box::pin(this.place_forever()));
        keep("sweep", |this| Box::pin(this.sweep_forever()));
        keep("retention", |this| Box::pin(this.retain_forever()));
        keep("pauses", |this| Box::pin(this.pause_forever()));
        keep("probe", |this| Box::pin(this.probe_forever()));
        keep("orphaned runners", |this| Box::pin(this.remove_ghosts_forever()));

        let mut read_rows = true;
        let mut pause = FIRST_PAUSE;
        loop {
            if read_rows {
                match self.reader.live_vms().await {
                    Ok(vms) => {
                        for vm in vms {
                            self.ledger.changes().remind(&vm);
                            take_up(&mut driven, vm);
                        }
                        read_rows = false;
                        pause = FIRST_PAUSE;
                    }
                    Err(error) => {
                        tracing::error!(error = %error, "cannot read the live vms; trying again");
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
                    // Its task may have given it up while its row lives on: look again.
                    read_rows |= match self.reader.vm(id).await {
                        Ok(vm) => vm.is_some_and(|vm| vm.state != State::Deleted),
                        Err(_) => true,
                    };
                }
                // After a write whose fate was in doubt, the rows are the truth, and not what was told of them.
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
    }
}
