//! Reads events of vms and templates: stored ones by their positions, and new ones as they are committed.

use std::sync::Arc;

use tokio::sync::broadcast;

pub use crate::store::{Change, Entry};
use crate::{
    domain::{Result, VmId, event::Recorded, template_event::RecordedOfTemplate},
    parts::Parts,
    store::{Ledger, Reader},
    templates::pull::{ProgressBoard, ProgressUpdate},
};

#[derive(Clone)]
pub struct Events {
    ledger: Ledger,
    reader: Reader,
    pull_progress: ProgressBoard,
}

impl Events {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, pull_progress, .. } = parts.clone();
        Self { ledger, reader, pull_progress }
    }

    /// Events of one vm after a position, oldest first.
    pub async fn of_vm(&self, id: VmId, after: i64, limit: u32) -> Result<Vec<Recorded>> {
        Ok(self.reader.events(Some(id), after, limit).await?)
    }

    /// Events of one template: those under its name, and those of the version with this digest.
    pub async fn of_template(
        &self,
        name_and_digest: [&str; 2],
        after: i64,
        limit: u32,
    ) -> Result<Vec<RecordedOfTemplate>> {
        Ok(self.reader.template_events(name_and_digest, after, limit).await?)
    }

    /// Events of all vms and templates after a position, oldest first.
    pub async fn all(&self, after: i64, limit: u32) -> Result<Vec<Entry>> {
        Ok(self.reader.entries(after, limit).await?)
    }

    /// The position of the newest event.
    pub async fn newest(&self) -> Result<i64> {
        Ok(self.reader.last_seq().await?)
    }

    /// Future changes of vms. Subscribe before reading stored events, otherwise a change in between is missed.
    pub fn subscribe_vms(&self) -> broadcast::Receiver<Change> {
        self.ledger.changes().subscribe()
    }

    /// Future changes of templates.
    pub fn subscribe_templates(&self) -> broadcast::Receiver<Arc<RecordedOfTemplate>> {
        self.ledger.changes().subscribe_templates()
    }

    /// Progress of all pulls, about once a second each while data is transferred.
    pub fn subscribe_pull_progress(&self) -> broadcast::Receiver<ProgressUpdate> {
        self.pull_progress.subscribe()
    }
}
