//! Job source that polls GitHub for what webhooks missed. It queries only repositories whose jobs a pool takes, with
//! conditional requests, which cost no rate limit while nothing has changed.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};

use super::{
    settings::Settings,
    source::{JobSource, ReceivedUpdate, status_of, update_of},
};
use crate::{
    domain::{
        Pool, Result, Scope, SourceName,
        job::{Job, JobUpdate, UpdateSource},
        job_record::JobStatus,
    },
    parts::Parts,
    platform::{Clock, retry::jittered},
    sources::github::{Delivery, GitHubClient, GitHubError},
    store::Reader,
};

/// While GitHub fails, the interval grows up to this factor.
const SLOWEST: u32 = 8;
/// GitHub redelivers only webhooks that are not older.
const DELIVERIES_KEPT: SignedDuration = SignedDuration::from_hours(72);
/// Deliveries from the time around the previous poll are checked again.
const OVERLAP: SignedDuration = SignedDuration::from_mins(5);

pub(super) struct Poll {
    source: SourceName,
    reader: Reader,
    clock: Clock,
    /// From the configuration.
    pools: Arc<[Pool]>,
    webhooks: bool,
    github: Arc<GitHubClient>,
    every: Duration,
    /// Factor by which the interval is lengthened.
    slowness: u32,
    /// Deliveries that were already requested again, so that each is requested once.
    asked_again: HashSet<String>,
    looked_at_deliveries: Option<Timestamp>,
    first: bool,
}

impl Poll {
    pub fn new(parts: &Parts, github: Arc<GitHubClient>, every: Duration, settings: &Settings) -> Poll {
        let Parts { reader, clock, .. } = parts.clone();
        Poll {
            source: SourceName::github(),
            reader,
            clock,
            pools: settings.pools.clone(),
            webhooks: settings.webhooks,
            github,
            every,
            slowness: 1,
            asked_again: HashSet::new(),
            looked_at_deliveries: None,
            first: true,
        }
    }

    async fn look(&mut self) -> Result<Vec<ReceivedUpdate>> {
        let open = self.reader.open_jobs().await?;
        let mut by_repository: BTreeMap<String, Vec<Job>> = BTreeMap::new();
        for job in open.into_iter().filter(|job| job.record.source == self.source) {
            by_repository.entry(folded(&job.record.repository)).or_default().push(job);
        }
        let mut received = Vec::new();
        let mut failed = None;
        for repository in self.repositories().await? {
            let jobs = by_repository.remove(&folded(&repository)).unwrap_or_default();
            match self.look_at(&repository, &jobs, self.clock.now()).await {
                Ok(updates) => {
                    received.extend(updates.into_iter().map(|update| ReceivedUpdate { receipt: None, update }));
                }
                Err(error) => {
                    tracing::warn!(job.repository = repository, error = %error, "cannot query GitHub for jobs");
                    failed = Some(error);
                }
            }
        }
        if let Err(error) = self.look_at_deliveries().await? {
            tracing::warn!(error = %error, "cannot query GitHub for missed webhooks");
            failed = Some(error);
        }
        self.slowness = if failed.is_some() { (self.slowness * 2).min(SLOWEST) } else { 1 };
        let result = if failed.is_some() { "failed" } else { "done" };
        metrics::counter!("mayfly_github_polls_total", "result" => result).increment(1);
        Ok(received)
    }

    /// Queued jobs of the repository, and what became of known jobs that are no longer queued.
    async fn look_at(&self, repository: &str, ours: &[Job], now: Timestamp) -> Result<Vec<JobUpdate>, GitHubError> {
        let scope = Scope::repository(repository).map_err(|what| GitHubError::Settings { what })?;
        let mut found = Vec::new();
        let mut waiting = HashSet::new();
        for job in self.github.queued_jobs(&scope).await? {
            waiting.insert(job.id);
            found.push(update_of(
                self.source.clone(),
                job,
                repository.to_owned(),
                JobStatus::Queued,
                UpdateSource::Poll,
            ));
        }
        // A webhook that came moments ago is newer than what the poll sees.
        let settled = SignedDuration::try_from(self.every / 2).unwrap_or(SignedDuration::ZERO);
        let is_new = |job: &&Job| {
            let age = now.duration_since(job.updated_at);
            // Negative: the clock was set back.
            !age.is_negative() && age < settled
        };
        for job in ours.iter().filter(|job| !waiting.contains(&job.record.id) && !is_new(job)) {
            match self.github.job(&scope, job.record.id).await? {
                Some(seen) => {
                    if let Some(status) = status_of(&seen.status) {
                        found.push(update_of(
                            self.source.clone(),
                            seen,
                            repository.to_owned(),
                            status,
                            UpdateSource::Poll,
                        ));
                    }
                }
                // Its run was deleted, or the repository is no longer visible: then the job cannot reach a runner of
                // this service. The next poll asks again before that is believed.
                None => found.push(JobUpdate {
                    record: job.record.clone(),
                    labels: job.labels.clone(),
                    runner_name: None,
                    source: UpdateSource::Poll,
                    missing: true,
                }),
            }
        }
        Ok(found)
    }

    /// Asks GitHub to redeliver failed webhooks. The inner error is GitHub's.
    async fn look_at_deliveries(&mut self) -> Result<Result<(), GitHubError>> {
        if !self.github.is_app() || !self.webhooks {
            return Ok(Ok(()));
        }
        let now = self.clock.now();
        let oldest = now - DELIVERIES_KEPT;
        let since = match self.looked_at_deliveries {
            Some(at) => at - OVERLAP,
            // After a start: from the last stored delivery on. Without any stored delivery, from now on.
            None => self.reader.newest_delivery(&self.source).await?.unwrap_or(now) - OVERLAP,
        };
        let deliveries = match self.github.hook_deliveries(since.max(oldest)).await {
            Ok(deliveries) => deliveries,
            Err(error) => return Ok(Err(error)),
        };
        for missed in missed(&deliveries) {
            if self.asked_again.contains(&missed.guid) || self.reader.knows_delivery(&self.source, &missed.guid).await?
            {
                continue;
            }
            tracing::info!(delivery.guid = missed.guid, "asking GitHub to redeliver a missed webhook");
            if let Err(error) = self.github.redeliver(missed.id).await {
                return Ok(Err(error));
            }
            metrics::counter!("mayfly_webhooks_redelivered_total").increment(1);
            self.asked_again.insert(missed.guid.clone());
        }
        self.looked_at_deliveries = Some(now);
        Ok(Ok(()))
    }

    /// Repositories that are known by name, and whose jobs a pool takes.
    async fn repositories(&self) -> Result<Vec<String>> {
        let known = self.reader.known_pools(&self.pools).await?;
        let pools: Vec<Pool> = known.into_values().map(|known| known.pool).collect();
        // GitHub's own spelling comes first: names that people wrote may differ in case.
        let mut names = self.reader.job_repositories(&self.source).await?;
        for pool in &pools {
            if let Scope::Repository { .. } = pool.scope {
                names.push(pool.scope.slug());
            }
            names.extend(pool.repositories.iter().filter(|name| !name.contains('*')).cloned());
        }
        let mut seen = HashSet::new();
        names.retain(|name| pools.iter().any(|pool| pool.enabled && pool.allows(name)) && seen.insert(folded(name)));
        Ok(names)
    }
}

impl JobSource for Poll {
    fn name(&self) -> &'static str {
        "poll"
    }

    fn listen(&mut self) -> BoxFuture<'_, Result<Vec<ReceivedUpdate>>> {
        Box::pin(async move {
            // The first poll runs at once, for changes that happened while the service was down.
            if !std::mem::take(&mut self.first) {
                // Jitter, so that hosts that share a GitHub do not poll at the same moment.
                tokio::time::sleep(jittered(self.every * self.slowness, 0.9..1.1)).await;
            }
            self.look().await
        })
    }

    fn applied(&mut self, _: ReceivedUpdate) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// Names that differ in case are one repository.
fn folded(repository: &str) -> String {
    repository.to_lowercase()
}

/// One delivery for each guid of which no delivery succeeded.
fn missed(deliveries: &[Delivery]) -> Vec<&Delivery> {
    let arrived: HashSet<&str> = deliveries.iter().filter(|d| d.arrived()).map(|d| d.guid.as_str()).collect();
    let mut seen = HashSet::new();
    deliveries
        .iter()
        .filter(|d| d.event == "workflow_job" && !arrived.contains(d.guid.as_str()) && seen.insert(d.guid.as_str()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_arrived_once_was_not_missed() {
        let delivery = |id, guid: &str, event: &str, status_code| Delivery {
            id,
            guid: guid.into(),
            delivered_at: Timestamp::UNIX_EPOCH,
            redelivery: false,
            status: None,
            status_code: Some(status_code),
            event: event.into(),
            action: None,
        };
        let all = [
            delivery(5, "a", "workflow_job", 500),
            delivery(4, "b", "workflow_job", 0),
            delivery(3, "a", "workflow_job", 202),
            delivery(2, "b", "workflow_job", 502),
            delivery(1, "c", "push", 0),
        ];
        let ids: Vec<u64> = missed(&all).iter().map(|d| d.id).collect();
        assert_eq!(ids, [4]);
    }
}
