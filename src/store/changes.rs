//! Who wants to know that something was committed.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use tokio::sync::broadcast;

use crate::domain::{Vm, event::Recorded};

/// One committed event and the vm as it stands after it.
#[derive(Clone, Debug)]
pub struct Change {
    pub vm: Arc<Vm>,
    pub recorded: Arc<Recorded>,
}

/// Published after the commit, in the order of the ledger. A listener that falls behind is told so (`Lagged`) and reads the
/// database instead: nothing is lost, because the database is the truth and this is only the bell.
#[derive(Clone)]
pub struct Changes {
    bell: broadcast::Sender<Change>,
    last_seq: Arc<AtomicI64>,
}

impl Changes {
    pub(super) fn new(last_seq: i64) -> Self {
        Self { bell: broadcast::channel(1024).0, last_seq: Arc::new(AtomicI64::new(last_seq)) }
    }

    /// Subscribe *before* reading the state that is to be watched, or a change in between is missed.
    pub fn subscribe(&self) -> broadcast::Receiver<Change> {
        self.bell.subscribe()
    }

    pub fn last_seq(&self) -> i64 {
        self.last_seq.load(Ordering::Acquire)
    }

    pub(super) fn publish(&self, made: &[Change]) {
        for change in made {
            self.last_seq.fetch_max(change.recorded.seq, Ordering::AcqRel);
            let _ = self.bell.send(change.clone());
        }
    }
}
