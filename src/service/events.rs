//! What happened to vms and templates: stored events by their positions, and new ones as they are committed.

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

    /// Of one vm, oldest first, those after a position.
    pub async fn of_vm(&self, id: VmId, after: i64, limit: u32) -> Result<Vec<Recorded>> {
        Ok(self.reader.events(Some(id), after, limit).await?)
    }

    /// Of one template: what happened under its name, and to the version with this digest.
    pub async fn of_template(
        &self,
        name_and_digest: [&str; 2],
        after: i64,
        limit: u32,
    ) -> Result<Vec<RecordedOfTemplate>> {
        Ok(self.reader.template_events(name_and_digest, after, limit).await?)
    }

    /// Of all vms and templates, oldest first, those after a position.
    pub async fn all(&self, after: i64, limit: u32) -> Result<Vec<Entry>> {
        Ok(self.reader.entries(after, limit).await?)
    }

    /// The position of the newest one.
    pub async fn newest(&self) -> Result<i64> {
        Ok(self.reader.last_seq().await?)
    }

    /// Of vms, from now on. Subscribe before reading what is stored, or a change in between is missed.
    pub fn subscribe_vms(&self) -> broadcast::Receiver<Change> {
        self.ledger.changes().subscribe()
    }

    /// Of templates, from now on.
    pub fn subscribe_templates(&self) -> broadcast::Receiver<Arc<RecordedOfTemplate>> {
        self.ledger.changes().subscribe_templates()
    }

    /// Of all pulls, about once a second each, while bytes come.
    pub fn subscribe_pull_progress(&self) -> broadcast::Receiver<ProgressUpdate> {
        self.pull_progress.subscribe()
    }
}
