//! Pulls as operations: asked for once, done in the background, looked at and cancelled by their id.
//!
//! ```text
//! verbs ──row──▶ run      one task per live row, as for vms: a restart starts the same tasks on the same rows
//!                  pull   the puller does the work; a failure that may pass is waited out
//!                  canary a vm of the new version runs its test, then the name moves
//! progress ──────▶ in memory, for whoever looks
//! ```

use std::{collections::HashMap, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{broadcast, watch};

use super::Service;
use crate::{
    domain::{
        Budgets, Code, Error, PullId, Result, TemplateEvent,
        pull::{Canary, FetchProgress, Pull, PullSpec, PullState},
    },
    platform::clock,
    store::pulls::no_pull,
    templates::pull::{PullProgress, PullRequest},
};

mod canary;
mod run;

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Failures that may pass are waited out this long.
    pub deadline: Duration,
    /// Before the second attempt; doubles each time.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(6 * 3600),
            first_pause: Duration::from_secs(5),
            longest_pause: Duration::from_secs(300),
        }
    }
}

/// What is said of a pull while its bytes come.
#[derive(Clone, Debug)]
pub struct Told {
    pub pull: Arc<Pull>,
    pub progress: PullProgress,
}

/// What is known of pulls that are under way, and only while this process lives.
pub struct Board {
    meters: Mutex<HashMap<PullId, watch::Receiver<PullProgress>>>,
    told: broadcast::Sender<Told>,
    /// Rung when a watch was set or removed.
    pub(super) watches: tokio::sync::Notify,
}

impl Default for Board {
    fn default() -> Self {
        Self { meters: Mutex::default(), told: broadcast::channel(64).0, watches: tokio::sync::Notify::new() }
    }
}

impl Board {
    fn meters(&self) -> MutexGuard<'_, HashMap<PullId, watch::Receiver<PullProgress>>> {
        self.meters.lock()
    }

    /// For as long as what is returned lives.
    fn show(self: &Arc<Self>, id: PullId, meter: watch::Receiver<PullProgress>) -> Shown {
        self.meters().insert(id, meter);
        Shown { board: self.clone(), id }
    }
}

struct Shown {
    board: Arc<Board>,
    id: PullId,
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.board.meters().remove(&self.id);
    }
}

impl From<&PullProgress> for FetchProgress {
    fn from(p: &PullProgress) -> Self {
        FetchProgress {
            bytes_done: p.bytes_done,
            bytes_total: p.bytes_total,
            chunks_done: p.chunks_done as u64,
            chunks_total: p.chunks_total as u64,
        }
    }
}

/// What the puller is asked for. `pinned`: a digest of the image that was looked up before.
fn request(spec: &PullSpec, pinned: Option<&str>, usual: &Budgets) -> Result<PullRequest> {
    let wrong = |what: String| Error::new(Code::RequestInvalid, "the request is not acceptable").field("/image", what);
    let image: crate::registry::oci::Reference =
        spec.image.parse().map_err(|e: crate::registry::oci::reference::ReferenceError| wrong(e.to_string()))?;
    let image = match pinned.and_then(|digest| digest.parse().ok()) {
        Some(digest) => image.pinned(digest),
        None => image,
    };
    Ok(PullRequest {
        cpus: spec.cpus,
        memory_mib: spec.memory_mib,
        handover: spec.handover,
        user: spec.user.clone(),
        ssh_key: spec.ssh_key.clone(),
        ssh_password: spec.ssh_password.clone(),
        budgets: spec.budgets.clone(),
        usual: usual.clone(),
        background: spec.background,
        ..PullRequest::new(image, spec.name.clone())
    })
}

pub(super) fn check_canary(canary: &Canary) -> Result<()> {
    let invalid = |field: &str, what: String| {
        Err(Error::new(Code::RequestInvalid, "the test cannot be run").field(format!("/canary/{field}"), what))
    };
    let length = canary.command.len();
    if canary.command.trim().is_empty() || length > Canary::LARGEST_COMMAND || canary.command.contains('\0') {
        return invalid("command", format!("1 to {} bytes of text", Canary::LARGEST_COMMAND));
    }
    if !(1..=Canary::LONGEST_TIMEOUT).contains(&canary.timeout_seconds) {
        return invalid("timeout_seconds", format!("1 to {}", Canary::LONGEST_TIMEOUT));
    }
    Ok(())
}

fn signed(duration: Duration) -> SignedDuration {
    SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX)
}

impl Service {
    /// Stores a pull, which is then done in the background. Says whether it is new: an equal one that is under way is joined.
    pub async fn start_pull(&self, spec: PullSpec) -> Result<(Arc<Pull>, bool)> {
        if let Some(canary) = &spec.canary {
            check_canary(canary)?;
        }
        let request = request(&spec, None, &self.settings.budgets)?;
        self.puller.check(&request).await.map_err(|error| Error::from(&error))?;
        let previous = match self.catalog.get(&spec.name).await {
            Ok(template) => Some(template.digest),
            Err(error) if error.code == Code::TemplateNotFound => None,
            Err(error) => return Err(error),
        };
        let canonical = serde_json::to_vec(&spec).map_err(Error::internal)?;
        let now = self.clock.now();
        let deadline = now.checked_add(signed(self.settings.pulls.deadline)).unwrap_or(Timestamp::MAX);
        let pull = Pull::asked_for(PullId::mint(), spec, previous, deadline, now);
        let (pull, new) = self.ledger.open_pull(pull, self.vault.fingerprint(&canonical)).await?;
        if new {
            tracing::info!(pull.id = %pull.id, image = pull.spec.image, template.name = pull.spec.name, "pull started");
        }
        Ok((pull, new))
    }

    pub async fn get_pull(&self, id: PullId) -> Result<Pull> {
        self.reader.pull(id).await?.ok_or_else(|| no_pull(id))
    }

    /// How far it is, while bytes come.
    pub fn pull_progress(&self, id: PullId) -> Option<PullProgress> {
        self.pulls.meters().get(&id).map(|meter| meter.borrow().clone())
    }

    /// Of all pulls, about once a second each, while bytes come.
    pub fn follow_pulls(&self) -> broadcast::Receiver<Told> {
        self.pulls.told.subscribe()
    }

    /// The pull once its generation is greater than `generation`, or it has ended, or `timeout` has passed. `None`: greater than
    /// the one it has now.
    pub async fn wait_pull(&self, id: PullId, generation: Option<i64>, timeout: Duration) -> Result<Pull> {
        let mut changes = self.changes().subscribe_pulls();
        let mut pull = self.get_pull(id).await?;
        let seen = generation.unwrap_or(pull.generation);
        let deadline = clock::monotonic() + timeout;
        while pull.generation <= seen && !pull.state.is_ended() {
            match tokio::time::timeout_at(deadline, changes.recv()).await {
                Ok(Ok(changed)) if changed.id != id => {}
                Ok(Ok(changed)) if changed.generation > pull.generation => pull = (*changed).clone(),
                Ok(Ok(_)) => {}
                Ok(Err(broadcast::error::RecvError::Lagged(_))) => pull = self.get_pull(id).await?,
                Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => break,
            }
        }
        Ok(pull)
    }

    /// Ends a pull. What was fetched is kept for the next one that needs it, unless it is to be discarded and nobody else pulls
    /// the same image. One that has ended stays as it is; discarding is done for it, too.
    pub async fn cancel_pull(&self, id: PullId, discard: bool) -> Result<Pull> {
        let pull = loop {
            let mut pull = self.get_pull(id).await?;
            if pull.state.is_ended() {
                break pull;
            }
            let now = self.clock.now();
            if let Some(progress) = self.pull_progress(id) {
                pull.fetched = FetchProgress::from(&progress);
                pull.image_digest = pull.image_digest.or(progress.image.map(|digest| digest.to_string()));
            }
            pull.ended(PullState::Cancelled, now);
            let event = TemplateEvent::PullCancelled { pull: id, image: pull.spec.image.clone() };
            let events = vec![(pull.spec.name.clone(), event)];
            // Each turn of this loop needs a commit of somebody else, and a pull has few of them.
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
        // The task that pulled it lets go of it when it hears of the end; the pieces that it was writing are written first.
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
                    None => self.get_pull(id).await,
                };
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(pull)
    }
}
