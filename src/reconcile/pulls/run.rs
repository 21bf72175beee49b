//! Carries out one pull, from its row to its end.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::sync::{
    broadcast::{self, error::RecvError},
    watch,
};

use super::{
    canary::CanaryTest,
    results::{PullResults, passes},
};
use crate::{
    domain::{
        Error, PullId, Result,
        pull::{FetchProgress, Pull, PullState},
    },
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader},
    templates::{
        progress::PullProgress,
        pull::{ProgressBoard, ProgressUpdate, PullRequest, Puller},
    },
};

/// Interval at which progress is published.
const TELL: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct PullRun {
    ledger: Ledger,
    reader: Reader,
    puller: Puller,
    board: ProgressBoard,
    clock: Clock,
    results: PullResults,
    canary: CanaryTest,
}

impl PullRun {
    pub fn new(parts: &Parts, results: PullResults, canary: CanaryTest) -> Self {
        let Parts { ledger, reader, puller, pull_progress: board, clock, .. } = parts.clone();
        Self { ledger, reader, puller, board, clock, results, canary }
    }

    /// Returns when the pull has ended.
    pub async fn drive(&self, id: PullId) {
        let mut changes = self.ledger.changes().subscribe_pulls();
        let mut seen_alive = false;
        loop {
            let pull = match self.reader.pull(id).await {
                Ok(Some(pull)) => pull,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(pull.id = %id, %error, "cannot read the pull; retrying");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let step = async {
                match pull.state {
                    PullState::Pulling => self.pull(pull.clone()).await,
                    PullState::Testing => self.canary.test(pull.clone()).await,
                    PullState::Done | PullState::Failed | PullState::Cancelled => Ok(()),
                }
            };
            tokio::select! {
                biased;
                done = step => if let Err(error) = done {
                    tracing::error!(pull.id = %id, %error, "cannot continue a pull; retrying");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
                () = ended_or_moved(&mut changes, &pull) => {}
            }
            if pull.state.is_ended() && seen_alive {
                let code = pull.fault.as_ref().map(|fault| fault.code.slug()).unwrap_or_default();
                metrics::counter!("mayfly_template_pulls_total", "state" => pull.state.as_str()).increment(1);
                tracing::info!(pull.id = %id, image = pull.spec.image, template.name = pull.spec.name, template.digest = pull.digest, pull.state = pull.state.as_str(), code, bytes = pull.fetched.bytes_done, "pull ended");
            }
            if pull.state.is_ended() {
                return;
            }
            seen_alive = true;
        }
    }

    /// Pulls the image and records the result. Cancelled with the pull; the puller keeps the chunks that it has
    /// verified.
    async fn pull(&self, mut pull: Pull) -> Result<()> {
        if let Some(at) = pull.retry_at {
            self.clock.sleep_until(at).await;
        }
        let mut asked = PullRequest::of_spec(&pull.spec, pull.image_digest.as_deref())?;
        if pull.spec.canary.is_some() {
            asked.name = None;
        }
        let meter = watch::Sender::new(PullProgress::default());
        let mut seen = meter.subscribe();
        let _shown = self.board.show(pull.id, meter.subscribe());
        let mut pulling = pin!(self.puller.pull(&asked, &meter));
        let mut tick = tokio::time::interval(TELL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let pulled = loop {
            tokio::select! {
                biased;
                pulled = &mut pulling => break pulled,
                _ = tick.tick() => {
                    if !seen.has_changed().unwrap_or(false) {
                        continue;
                    }
                    let progress = seen.borrow_and_update().clone();
                    if pull.image_digest.is_none() && let Some(digest) = progress.image {
                        pull.image_digest = Some(digest.to_string());
                        match self.ledger.save_pull(pull, Vec::new(), self.clock.now()).await? {
                            Some(saved) => pull = (*saved).clone(),
                            None => return Ok(()),
                        }
                    }
                    self.board.publish(ProgressUpdate { pull: Arc::new(pull.clone()), progress });
                }
            }
        };
        let progress = meter.borrow().clone();
        pull.fetched = FetchProgress::from(&progress);
        pull.image_digest = pull.image_digest.or(progress.image.map(|digest| digest.to_string()));
        match pulled {
            Ok(template) => {
                pull.digest = Some(template.digest);
                pull.fault = None;
                pull.failures = 0;
                pull.retry_at = None;
                if pull.spec.canary.is_some() {
                    pull.state = PullState::Testing;
                    self.ledger.save_pull(pull, Vec::new(), self.clock.now()).await?;
                    return Ok(());
                }
                self.results.done(pull, "pulled").await
            }
            Err(error) => {
                let error = Error::from(&*error);
                if !passes(error.code) {
                    self.discard_staged(&pull).await;
                }
                self.results.retry_later(pull, error).await
            }
        }
    }

    /// Removes the data of an image that cannot be pulled: nothing will continue it, and it may be what fills the
    /// disk. Before the row says that the pull has failed, so that a crash cannot leave it behind.
    async fn discard_staged(&self, pull: &Pull) {
        let Some(image) = pull.image_digest.as_deref().and_then(|digest| digest.parse().ok()) else { return };
        let shared = self
            .reader
            .live_pulls()
            .await
            .map(|live| live.iter().any(|other| other.id != pull.id && other.image_digest == pull.image_digest));
        let discarded = match shared {
            Ok(false) => self.puller.discard_released(image).await.map_err(|error| error.to_string()),
            Ok(true) => return,
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = discarded {
            tracing::warn!(pull.id = %pull.id, error, "cannot remove the data of a pull that failed; it is removed when space is needed");
        }
    }
}

/// Returns when this pull has ended, or may have ended, or when a step of the clock moved its next retry.
async fn ended_or_moved(changes: &mut broadcast::Receiver<Arc<Pull>>, known: &Pull) {
    loop {
        match changes.recv().await {
            Ok(pull) if pull.id == known.id && (pull.state.is_ended() || pull.retry_at != known.retry_at) => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
