//! Follows tags for templates: resolves each watched tag at an interval, and starts a pull in the background when the
//! tag has moved.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use jiff::{SignedDuration, Timestamp};

use super::results::passes;
use crate::{
    admission::PullAdmission,
    domain::{
        Code, Error, Fault, PullId, Result, TemplateEvent,
        pull::{PullSpec, PullState, Watch},
    },
    parts::Parts,
    platform::Clock,
    registry::oci::{Digest, Reference},
    store::{Ledger, Reader, vault},
    templates::{Catalog, pull::Puller},
};

/// Number of registries that are queried at the same time.
const AT_ONCE: usize = 4;
/// Failures lengthen the interval, up to this factor.
const SLOWEST: u32 = 16;
/// Longest interval after failures, in seconds.
const LONGEST: u32 = 24 * 3600;
/// Pause after a failure of the database.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Clone)]
pub(super) struct TagWatches {
    ledger: Ledger,
    reader: Reader,
    catalog: Arc<Catalog>,
    puller: Puller,
    clock: Clock,
    admission: PullAdmission,
}

impl TagWatches {
    pub fn new(parts: &Parts, admission: PullAdmission) -> Self {
        let Parts { ledger, reader, catalog, puller, clock, .. } = parts.clone();
        Self { ledger, reader, catalog, puller, clock, admission }
    }

    pub async fn watch_forever(self) {
        loop {
            let watches = match self.reader.watches().await {
                Ok(watches) => watches,
                Err(error) => {
                    tracing::error!(%error, "cannot read the watches; retrying");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            };
            let now = self.clock.now();
            let (due, later): (Vec<_>, Vec<_>) = watches.into_iter().partition(|watch| watch.next_look_at <= now);
            if due.is_empty() {
                let next = later.iter().map(|watch| watch.next_look_at).min();
                let sleep = async {
                    match next {
                        Some(at) => self.clock.sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = sleep => {}
                    () = self.ledger.changes().watches_changed() => {}
                }
                continue;
            }
            let this = &self;
            let looks = futures_util::stream::iter(due).for_each_concurrent(AT_ONCE, |watch| async move {
                if let Err(error) = this.look(&watch).await {
                    tracing::error!(template.name = watch.template, %error, "cannot record the result of a watch");
                    tokio::time::sleep(AGAIN).await;
                }
            });
            looks.await;
        }
    }

    /// Resolves the tag once, and acts on the result. The error is an internal one.
    async fn look(&self, watch: &Watch) -> Result<()> {
        let reference: Reference = watch.image.parse().map_err(Error::internal)?;
        let resolved = self.puller.resolve(&reference).await;
        let now = self.clock.now();
        let mut after = Watch { looked_at: Some(now), ..watch.clone() };
        let started = match resolved {
            Ok(digest) => self.follow_tag(watch, &reference, digest).await,
            Err(error) => Err(Error::from(&error)),
        };
        // The pause that the registry has asked for.
        let mut asked = SignedDuration::ZERO;
        let event = match started {
            Ok(started) => {
                after.failures = 0;
                after.fault = None;
                started.map(|(digest, pull)| {
                    after.image_digest = Some(digest.clone());
                    after.pull = Some(pull);
                    TemplateEvent::TagMoved { image: watch.image.clone(), digest }
                })
            }
            Err(error) if matches!(error.code, Code::Internal | Code::StoreUnavailable) => return Err(error),
            Err(error) => {
                after.failures = after.failures.saturating_add(1);
                asked = SignedDuration::from_secs(error.retry_after.unwrap_or(0).into());
                // One event per cause: a registry that is unreachable for a night causes one event.
                let new = watch.fault.as_ref().is_none_or(|f| f.code != error.code);
                let event = TemplateEvent::WatchFailed {
                    image: watch.image.clone(),
                    code: error.code,
                    detail: error.detail.clone(),
                };
                tracing::debug!(template.name = watch.template, error = %error, "cannot resolve a watched tag");
                after.fault = Some(Fault { code: error.code, detail: error.detail, at: now });
                new.then_some(event)
            }
        };
        after.next_look_at = now.checked_add(pause(&after, now).max(asked)).unwrap_or(Timestamp::MAX);
        // Ignored if the watch was set or removed meanwhile.
        self.ledger.save_watch(watch, after, event, now).await?;
        Ok(())
    }

    /// Starts a pull if the tag points at a digest that was not handled yet.
    async fn follow_tag(
        &self,
        watch: &Watch,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Option<(String, PullId)>> {
        let shown = digest.to_string();
        if watch.image_digest.as_ref() == Some(&shown) && !self.failed_for_now(watch).await? {
            return Ok(None);
        }
        let current = match self.catalog.get(&watch.template).await {
            Ok(template) => Some(template),
            Err(error) if error.code == Code::TemplateNotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(current) = &current
            && let Some(here) = self.puller.here(&reference.pinned(digest)).await?
            && here.digest == current.digest
        {
            return Ok(None);
        }
        // A new version inherits the settings of the previous one, because settings that were given by hand are not
        // in the image.
        let spec = PullSpec {
            image: reference.pinned(digest).to_string(),
            name: watch.template.clone(),
            cpus: current.as_ref().map(|t| t.cpus),
            memory_mib: current.as_ref().map(|t| t.memory_mib),
            handover: current.as_ref().map(|t| t.handover),
            user: current.as_ref().map(|t| t.user.clone()),
            network: current.as_ref().and_then(|t| t.network),
            ready: current.as_ref().and_then(|t| t.ready.clone()),
            ssh_key: current.as_ref().and_then(|t| t.files.ssh_key.clone()),
            ssh_password: current.as_ref().and_then(|t| t.files.ssh_password.clone()),
            budgets: current.map(|t| t.budgets).unwrap_or_default(),
            canary: watch.canary.clone(),
            background: true,
        };
        let (pull, _) = self.admission.start(spec).await?;
        Ok(Some((shown, pull.id)))
    }

    /// Whether the pull that this watch started failed for a cause that may be temporary.
    async fn failed_for_now(&self, watch: &Watch) -> Result<bool> {
        let Some(id) = watch.pull else { return Ok(false) };
        let fault = self.reader.pull(id).await?.filter(|p| p.state == PullState::Failed);
        let fault = fault.and_then(|pull| pull.fault);
        Ok(fault.is_some_and(|fault| passes(fault.code)))
    }
}

/// Time until the next look: jitter of a tenth, so that hosts that were set up together do not query together, and
/// longer after failures.
fn pause(watch: &Watch, now: Timestamp) -> SignedDuration {
    let slower = (1 << watch.failures.min(5)).min(SLOWEST);
    let seconds = watch.every_seconds.saturating_mul(slower).min(watch.every_seconds.max(LONGEST));
    let seed = vault::sha256(format!("{} {now}", watch.template).as_bytes());
    let spread = i64::from(u16::from_be_bytes([seed[0], seed[1]]));
    let millis = i64::from(seconds) * 1000;
    SignedDuration::from_millis(millis - millis / 10 + millis / 5 * spread / i64::from(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_spread_and_failures_make_them_rarer() {
        let at = |n: i64| Timestamp::from_second(1_700_000_000 + n).unwrap();
        let mut watch = Watch {
            template: "t".into(),
            image: "r/x:y".into(),
            every_seconds: 3600,
            canary: None,
            created_at: at(0),
            looked_at: None,
            next_look_at: at(0),
            image_digest: None,
            pull: None,
            failures: 0,
            fault: None,
        };
        let pauses: Vec<_> = (0..200).map(|n| pause(&watch, at(n)).as_secs()).collect();
        assert!(pauses.iter().all(|s| (3240..=3960).contains(s)), "{pauses:?}");
        assert!(pauses.iter().any(|s| *s < 3400) && pauses.iter().any(|s| *s > 3800), "{pauses:?}");
        for (failures, hours) in [(1, 2), (2, 4), (4, 16), (5, 16), (1000, 16)] {
            watch.failures = failures;
            let hour = pause(&watch, at(0)).as_secs_f64() / 3600.0;
            assert!((hour / f64::from(hours) - 1.0).abs() <= 0.1, "{failures}: {hour}");
        }
        watch.every_seconds = 30 * 24 * 3600;
        assert!(pause(&watch, at(0)).as_secs() < 30 * 24 * 3600 * 11 / 10 + 1);
    }
}
