//! Starts the loops of pulls: one task per unfinished pull, and the watches of tags.

use std::{collections::HashSet, time::Duration};

use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{canary::CanaryTest, results::PullResults, run::PullRun, settings::Settings, watches::TagWatches};
use crate::{
    admission::{PullAdmission, VmAdmission},
    domain::PullId,
    parts::Parts,
    platform::tasks,
    store::{Ledger, Reader},
};

/// Runs one task per live pull, and the loop that watches tags.
pub struct PullLoops {
    ledger: Ledger,
    reader: Reader,
    run: PullRun,
    watches: TagWatches,
}

impl PullLoops {
    pub fn new(parts: &Parts, vms: VmAdmission, pulls: PullAdmission, settings: Settings) -> Self {
        let Parts { ledger, reader, .. } = parts.clone();
        let results = PullResults::new(parts, settings);
        let canary = CanaryTest::new(parts, vms, results.clone());
        let run = PullRun::new(parts, results, canary);
        Self { ledger, reader, run, watches: TagWatches::new(parts, pulls) }
    }

    /// Runs until `shutdown`. Unfinished pulls continue at the next start.
    pub async fn run(self, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        // Subscribes before it reads the rows, so that no pull between the two is missed.
        let mut changes = self.ledger.changes().subscribe_pulls();
        let (gone, mut endings) = mpsc::unbounded_channel();
        let mut driven: HashSet<PullId> = HashSet::new();
        let take_up = |driven: &mut HashSet<PullId>, id: PullId| {
            if driven.insert(id) {
                let (run, gone) = (self.run.clone(), gone.clone());
                let work = async move {
                    let done = tasks::run_catching_panic("pull", run.drive(id)).await.is_some();
                    let _ = gone.send((id, done));
                };
                let shutdown = shutdown.clone();
                tracker.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
            }
        };
        let watches = self.watches.clone();
        let watching = tasks::keep_running("watches", move || watches.clone().watch_forever());
        tracker.spawn(shutdown.clone().run_until_cancelled_owned(watching));
        let mut read_rows = true;
        loop {
            if read_rows {
                match self.reader.live_pulls().await {
                    Ok(pulls) => {
                        pulls.into_iter().for_each(|pull| take_up(&mut driven, pull.id));
                        read_rows = false;
                    }
                    Err(error) => {
                        tracing::error!(error = %error, "cannot read the unfinished pulls; retrying");
                        if shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_none() {
                            break;
                        }
                        continue;
                    }
                }
            }
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some((id, done)) = endings.recv() => {
                    driven.remove(&id);
                    read_rows |= !done;
                }
                change = changes.recv() => match change {
                    Ok(pull) if pull.state.is_ended() => {}
                    Ok(pull) => take_up(&mut driven, pull.id),
                    Err(RecvError::Lagged(_)) => read_rows = true,
                    Err(RecvError::Closed) => break,
                },
            }
        }
        tracker.close();
        tracker.wait().await;
    }
}
