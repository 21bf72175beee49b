//! Shows, awaits and cancels pulls. `admission::pulls` creates them; `reconcile::pulls` carries them out.

use std::time::Duration;

use tokio::sync::broadcast;

pub use crate::templates::{progress::PullProgress, pull::ProgressUpdate};
use crate::{
    domain::{
        Announcer, Error, Event, PullId, Result, State, TemplateEvent,
        pull::{FetchProgress, Pull, PullState},
    },
    parts::Parts,
    platform::{Clock, clock},
    store::{Expect, Ledger, Reader, pulls::no_pull},
    templates::pull::{ProgressBoard, Puller},
};

#[derive(Clone)]
pub struct Pulls {
    ledger: Ledger,
    reader: Reader,
    puller: Puller,
    board: ProgressBoard,
    clock: Clock,
}

impl Pulls {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, puller, pull_progress: board, clock, .. } = parts.clone();
        Self { ledger, reader, puller, board, clock }
    }

    /// Newest first, those before `before`.
    pub async fn list(&self, before: Option<PullId>, limit: u32) -> Result<Vec<Pull>> {
        Ok(self.reader.pulls(before, limit).await?)
    }

    pub async fn get(&self, id: PullId) -> Result<Pull> {
        self.reader.pull(id).await?.ok_or_else(|| no_pull(id))
    }

    /// The progress of the pull, while data is transferred.
    pub fn progress(&self, id: PullId) -> Option<PullProgress> {
        self.board.progress(id)
    }

    /// Returns the pull once its generation is greater than `generation`, it has ended, or `timeout` has passed.
    /// `None`: greater than its current generation.
    pub async fn wait(&self, id: PullId, generation: Option<i64>, timeout: Duration) -> Result<Pull> {
        let mut changes = self.ledger.changes().subscribe_pulls();
        let mut pull = self.get(id).await?;
        let seen = generation.unwrap_or(pull.generation);
        let deadline = clock::monotonic() + timeout;
        while pull.generation <= seen && !pull.state.is_ended() {
            match tokio::time::timeout_at(deadline, changes.recv()).await {
                Ok(Ok(changed)) if changed.id != id => {}
                Ok(Ok(changed)) if changed.generation > pull.generation => pull = (*changed).clone(),
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => pull = self.get(id).await?,
                Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => break,
            }
        }
        Ok(pull)
    }

    /// Cancels a pull. Downloaded data is kept for the next pull of the image, unless it is to be discarded and no
    /// other pull uses it. An ended pull keeps its state; discarding works for it, too.
    pub async fn cancel(&self, id: PullId, discard: bool) -> Result<Pull> {
        let pull = loop {
            let mut pull = self.get(id).await?;
            if pull.state.is_ended() {
                break pull;
            }
            let now = self.clock.now();
            if let Some(progress) = self.progress(id) {
                pull.fetched = FetchProgress::from(&progress);
                pull.image_digest = pull.image_digest.or(progress.image.map(|digest| digest.to_string()));
            }
            pull.ended(PullState::Cancelled, now);
            let event = TemplateEvent::PullCancelled { pull: id, image: pull.spec.image.clone() };
            let events = vec![(pull.spec.name.clone(), event)];
            // Each iteration needs another commit for this pull, and a pull has few of them.
            if let Some(saved) = self.ledger.save_pull(pull, events, now).await? {
                break (*saved).clone();
            }
        };
        if pull.state == PullState::Cancelled {
            self.end_canary(&pull).await?;
        }
        if !discard || pull.discarded || pull.state == PullState::Done {
            return Ok(pull);
        }
        self.discard_fetched(pull).await
    }

    async fn discard_fetched(&self, mut pull: Pull) -> Result<Pull> {
        let Some(image) = pull.image_digest.as_deref().and_then(|d| d.parse().ok()) else { return Ok(pull) };
        // The task of the pull releases the data when it sees the end; it finishes its current writes first.
        for _ in 0..100 {
            let others = self.reader.live_pulls().await?;
            if others.iter().any(|other| other.image_digest == pull.image_digest) {
                break;
            }
            let gone = self.puller.discard(image).await.map_err(|error| Error::from(&error))?;
            if gone {
                pull.discarded = true;
                let id = pull.id;
                return match self.ledger.save_pull(pull, Vec::new(), self.clock.now()).await? {
                    Some(saved) => Ok((*saved).clone()),
                    None => self.get(id).await,
                };
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(pull)
    }

    /// Ends the test vm of a cancelled pull. A vm that is missed here ends by its lifetime.
    async fn end_canary(&self, pull: &Pull) -> Result<()> {
        let Some(id) = pull.vm else { return Ok(()) };
        match self.reader.vm(id).await? {
            Some(vm) if vm.state != State::Deleted && vm.outcome.is_none() => {
                let event = Event::EndForced { by: Announcer::Admin };
                self.ledger.apply(id, Expect::Anything, event, self.clock.now()).await?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
