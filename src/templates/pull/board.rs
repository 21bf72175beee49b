//! Progress of the unfinished pulls by their ids, in memory. What has to survive a restart is in the pull's row.

use std::{collections::HashMap, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, watch};

use crate::domain::{PullId, pull::Pull};
use crate::templates::progress::PullProgress;

/// Published about once a second for each pull that transfers data.
#[derive(Clone, Debug)]
pub struct ProgressUpdate {
    pub pull: Arc<Pull>,
    pub progress: PullProgress,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct ProgressBoard {
    meters: Arc<Mutex<HashMap<PullId, watch::Receiver<PullProgress>>>>,
    updates: broadcast::Sender<ProgressUpdate>,
}

impl Default for ProgressBoard {
    fn default() -> Self {
        Self { meters: Arc::default(), updates: broadcast::channel(64).0 }
    }
}

impl ProgressBoard {
    fn meters(&self) -> MutexGuard<'_, HashMap<PullId, watch::Receiver<PullProgress>>> {
        self.meters.lock()
    }

    /// Shows this pull's progress until the returned value is dropped.
    pub fn show(&self, id: PullId, meter: watch::Receiver<PullProgress>) -> ShownProgress {
        self.meters().insert(id, meter);
        ShownProgress { board: self.clone(), id }
    }

    /// `None`: it is not transferring data.
    pub fn progress(&self, id: PullId) -> Option<PullProgress> {
        self.meters().get(&id).map(|meter| meter.borrow().clone())
    }

    pub fn publish(&self, update: ProgressUpdate) {
        // An error only means that there are no subscribers.
        let _ = self.updates.send(update);
    }

    pub fn subscribe(&self) -> broadcast::Receiver<ProgressUpdate> {
        self.updates.subscribe()
    }
}

pub struct ShownProgress {
    board: ProgressBoard,
    id: PullId,
}

impl Drop for ShownProgress {
    fn drop(&mut self) {
        self.board.meters().remove(&self.id);
    }
}
