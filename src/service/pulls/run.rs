//! One task per pull that has not ended.

use std::{collections::HashSet, pin::pin, sync::Arc, time::Duration};

use jiff::SignedDuration;
use tokio::sync::{
    broadcast::{self, error::RecvError},
    mpsc, watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Service, Told, request, signed};
use crate::{
    domain::{
        Code, Error, Fault, PullId, Result, TemplateEvent,
        pull::{FetchProgress, Pull, PullState},
    },
    platform::tasks,
    templates::pull::PullProgress,
};

/// So often it is said how far a pull is.
const TELL: Duration = Duration::from_secs(1);

impl Service {
    /// Does what pulls and watches owe until `shutdown`. They are left as they are: the next start takes them up.
    pub async fn run_pulls(self, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        // Subscribed before the rows are read, so that no pull falls between the two.
        let mut changes = self.changes().subscribe_pulls();
        let (gone, mut endings) = mpsc::unbounded_channel();
        let mut driven: HashSet<PullId> = HashSet::new();
        let take_up = |driven: &mut HashSet<PullId>, id: PullId| {
            if driven.insert(id) {
                let (this, gone) = (self.clone(), gone.clone());
                let work = async move {
                    let done = tasks::survived("pull", this.drive_pull(id)).await.is_some();
                    let _ = gone.send((id, done));
                };
                let shutdown = shutdown.clone();
                tracker.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
            }
        };
        let watcher = self.clone();
        let watching = tasks::keep_running("watches", move || watcher.clone().watch_forever());
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
                        tracing::error!(error = %error, "cannot read the pulls under way; trying again");
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

    async fn drive_pull(&self, id: PullId) {
        let mut changes = self.changes().subscribe_pulls();
        let mut seen_alive = false;
        loop {
            let pull = match self.reader.pull(id).await {
                Ok(Some(pull)) => pull,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(pull.id = %id, %error, "cannot read the pull; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let step = async {
                match pull.state {
                    PullState::Pulling => self.pull_step(pull.clone()).await,
                    PullState::Testing => self.canary_step(pull.clone()).await,
                    PullState::Done | PullState::Failed | PullState::Cancelled => Ok(()),
                }
            };
            tokio::select! {
                biased;
                done = step => if let Err(error) = done {
                    tracing::error!(pull.id = %id, %error, "a pull could not go on; trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
                () = ended(&mut changes, id) => {}
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

    /// Pulls, and writes down what came of it. Dropped when the pull is cancelled; the puller keeps what it has verified.
    async fn pull_step(&self, mut pull: Pull) -> Result<()> {
        if let Some(at) = pull.retry_at {
            self.clock.sleep_until(at).await;
        }
        let mut asked = request(&pull.spec, pull.image_digest.as_deref(), &self.settings.budgets)?;
        if pull.spec.canary.is_some() {
            asked.name = None;
        }
        let meter = watch::Sender::new(PullProgress::default());
        let mut seen = meter.subscribe();
        let _shown = self.pulls.show(pull.id, meter.subscribe());
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
                    let _ = self.pulls.told.send(Told { pull: Arc::new(pull.clone()), progress });
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
                self.pull_done(pull, "pulled").await
            }
            Err(error) => self.pull_stumbled(pull, Error::from(&*error)).await,
        }
    }

    /// A failure: waited out, where that may help and there is time.
    pub(super) async fn pull_stumbled(&self, mut pull: Pull, error: Error) -> Result<()> {
        let now = self.clock.now();
        let passes = matches!(error.code, Code::ImageUnavailable | Code::QueueFull | Code::StoreUnavailable);
        let at = now.checked_add(self.pause(pull.failures)).ok().filter(|at| passes && *at < pull.deadline);
        pull.fault = Some(Fault { code: error.code, detail: error.detail, at: now });
        match at {
            Some(at) => {
                pull.failures += 1;
                pull.retry_at = Some(at);
                self.ledger.save_pull(pull, Vec::new(), now).await?;
                Ok(())
            }
            None => self.pull_lost(pull, None).await,
        }
    }

    fn pause(&self, failures: u32) -> SignedDuration {
        let settings = &self.settings.pulls;
        signed(settings.first_pause.saturating_mul(1 << failures.min(16)).min(settings.longest_pause))
    }

    /// The end that was hoped for. `why` the name moved, if it did.
    pub(super) async fn pull_done(&self, mut pull: Pull, why: &str) -> Result<()> {
        let now = self.clock.now();
        let name = pull.spec.name.clone();
        let digest = pull.digest.clone().unwrap_or_default();
        let mut events = Vec::new();
        if pull.previous.as_ref() != Some(&digest) {
            let moved = TemplateEvent::NameMoved {
                name: name.clone(),
                from: pull.previous.clone(),
                to: Some(digest.clone()),
                why: why.to_owned(),
            };
            events.push((name.clone(), moved));
        }
        let pulled = TemplateEvent::Pulled {
            pull: pull.id,
            image: pull.spec.image.clone(),
            digest,
            bytes: pull.fetched.bytes_done,
            seconds: now.duration_since(pull.created_at).as_secs().max(0).unsigned_abs(),
        };
        events.push((name, pulled));
        pull.ended(PullState::Done, now);
        self.ledger.save_pull(pull, events, now).await?;
        Ok(())
    }

    /// The end that its fault tells of, with what else there is to say of it.
    pub(super) async fn pull_lost(&self, mut pull: Pull, more: Option<TemplateEvent>) -> Result<()> {
        let now = self.clock.now();
        let name = pull.spec.name.clone();
        let Some(fault) = pull.fault.clone() else {
            return Err(Error::internal("a pull failed without a fault"));
        };
        let failed = TemplateEvent::PullFailed {
            pull: pull.id,
            image: pull.spec.image.clone(),
            code: fault.code,
            detail: fault.detail,
        };
        let events = more.into_iter().chain([failed]).map(|event| (name.clone(), event)).collect();
        pull.ended(PullState::Failed, now);
        self.ledger.save_pull(pull, events, now).await?;
        Ok(())
    }
}

/// Returns when this pull has ended, or may have.
async fn ended(changes: &mut broadcast::Receiver<Arc<Pull>>, id: PullId) {
    loop {
        match changes.recv().await {
            Ok(pull) if pull.id == id && pull.state.is_ended() => return,
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => std::future::pending().await,
        }
    }
}
