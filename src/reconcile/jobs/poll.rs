//! Job source that polls a CI server for what webhooks missed. It asks only about jobs that a pool takes; GitHub is asked
//! with conditional requests, which cost no rate limit while nothing has changed.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};

use super::{
    settings::Settings,
    update_feed::{JobUpdateFeed, ReceivedUpdate},
    waiting::WaitNotes,
};
use crate::{
    domain::{
        Pool, Result, Scope, Vm, VmId,
        job::{Job, JobUpdate, UpdateSource},
    },
    parts::Parts,
    platform::{Clock, retry::jittered},
    sources::{
        CiClient, CiServer, SourceError,
        ci_server::QueueUnit,
        deliveries::FoundJob,
        github::{Delivery, GitHubClient},
    },
    store::Reader,
};

/// While the server fails, the interval grows up to this factor.
const SLOWEST: u32 = 8;
/// GitHub redelivers only webhooks that are not older.
const DELIVERIES_KEPT: SignedDuration = SignedDuration::from_hours(72);
/// Deliveries from the time around the previous poll are checked again.
const OVERLAP: SignedDuration = SignedDuration::from_mins(5);

pub(super) struct Poll {
    server: CiServer,
    reader: Reader,
    clock: Clock,
    /// From the configuration.
    pools: Arc<[Pool]>,
    webhooks: bool,
    every: Duration,
    /// Factor by which the interval is lengthened.
    slowness: u32,
    /// Deliveries that were already requested again, so that each is requested once.
    asked_again: HashSet<String>,
    looked_at_deliveries: Option<Timestamp>,
    notes: WaitNotes,
    first: bool,
}

impl Poll {
    pub fn new(parts: &Parts, server: CiServer, every: Duration, webhooks: bool, settings: &Settings) -> Poll {
        let Parts { reader, clock, .. } = parts.clone();
        Poll {
            server,
            reader,
            clock,
            pools: settings.pools.clone(),
            webhooks,
            every,
            slowness: 1,
            asked_again: HashSet::new(),
            looked_at_deliveries: None,
            notes: WaitNotes::default(),
            first: true,
        }
    }

    async fn look(&mut self) -> Result<Vec<ReceivedUpdate>> {
        let mut open = self.reader.open_jobs().await?;
        open.retain(|job| job.record.source == *self.server.name());
        let pools = self.enabled_pools().await?;
        let targets = match self.server.queue_unit() {
            QueueUnit::Repository => self.repositories(&pools).await?,
            QueueUnit::Everything => vec![Scope::Instance],
            QueueUnit::Scope => {
                pools.iter().map(|pool| pool.scope.clone()).collect::<BTreeSet<_>>().into_iter().collect()
            }
        };
        let mut received = Vec::new();
        let mut failed = self.keep_claims(&open).await?.is_err();
        for target in targets {
            let covered = |job: &Job| {
                job.record.repository.split_once('/').is_some_and(|(owner, name)| target.covers(owner, name))
            };
            let (ours, rest) = open.into_iter().partition(covered);
            open = rest;
            match self.look_at(&target, &ours, &pools, self.clock.now()).await {
                Ok(updates) => {
                    received.extend(updates.into_iter().map(|update| ReceivedUpdate { receipt: None, update }));
                }
                Err(error) => {
                    tracing::warn!(job.source = %self.server.name(), scope = %target.slug(), error = %error, "cannot query the CI server for jobs");
                    failed = true;
                }
            }
        }
        if let CiClient::GitHub(github) = self.server.client().clone()
            && let Err(error) = self.look_at_deliveries(&github).await?
        {
            tracing::warn!(job.source = %self.server.name(), error = %error, "cannot query GitHub for missed webhooks");
            failed = true;
        }
        self.slowness = if failed { (self.slowness * 2).min(SLOWEST) } else { 1 };
        let result = if failed { "failed" } else { "done" };
        let source = self.server.name().to_string();
        metrics::counter!("mayfly_source_polls_total", "source" => source, "result" => result).increment(1);
        Ok(received)
    }

    /// Queued jobs of the repository or scope, and what became of known jobs that are no longer queued.
    async fn look_at(
        &self,
        target: &Scope,
        ours: &[Job],
        pools: &[Pool],
        now: Timestamp,
    ) -> Result<Vec<JobUpdate>, SourceError> {
        let source = self.server.name();
        // The server may list jobs of repositories whose jobs no pool takes.
        let wanted = |job: &JobUpdate| pools.iter().any(|pool| pool.allows(source, &job.record.repository));
        let mut found = self.server.queued_jobs(target).await?;
        found.retain(wanted);
        let waiting: HashSet<_> = found.iter().map(|job| job.record.key()).collect();
        // A webhook that came moments ago is newer than what the poll sees.
        let settled = SignedDuration::try_from(self.every / 2).unwrap_or(SignedDuration::ZERO);
        let is_new = |job: &&Job| {
            let age = now.duration_since(job.updated_at);
            // Negative: the clock was set back.
            !age.is_negative() && age < settled
        };
        let asked: Vec<&Job> = ours.iter().filter(|job| !waiting.contains(&job.record.key()) && !is_new(job)).collect();
        for (job, seen) in asked.iter().zip(self.server.jobs(&asked).await?) {
            match seen {
                FoundJob::Here(update) => {
                    // It was run again, and the news of this attempt's end was lost.
                    if update.record.key() != job.record.key() {
                        found.push(job.superseded());
                    }
                    found.push(*update);
                }
                FoundJob::Unclear => {}
                // Its run was deleted, or the repository is no longer visible: then the job cannot reach a runner of
                // this service. The next poll asks again before that is believed.
                FoundJob::Missing => found.push(JobUpdate {
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

    /// Prolongs the reservations of jobs that wait for their vms, and tells the server what they wait for. The inner error is
    /// the server's.
    async fn keep_claims(&mut self, open: &[Job]) -> Result<Result<(), SourceError>> {
        if !self.server.kind().binds_jobs() {
            return Ok(Ok(()));
        }
        let vms = self.reader.live_vms().await?;
        let live =
            |id: &VmId| vms.iter().find(|vm| vm.id() == *id && vm.outcome.is_none() && vm.announced_by.is_none());
        let waiting: Vec<(&Job, &Vm)> = open
            .iter()
            .filter(|job| job.waits())
            .filter_map(|job| Some((job, job.created_vm.as_ref().and_then(live)?)))
            .collect();
        let kept: Vec<&Job> = waiting.iter().map(|(job, _)| *job).collect();
        let kept = self.server.keep_claims(&kept).await;
        if let Err(error) = &kept {
            tracing::warn!(job.source = %self.server.name(), error = %error, "cannot prolong the reservations of jobs");
        } else {
            self.notes.tell(&self.server, &waiting).await;
        }
        Ok(kept)
    }

    /// Asks GitHub to redeliver failed webhooks. The inner error is GitHub's.
    async fn look_at_deliveries(&mut self, github: &GitHubClient) -> Result<Result<(), SourceError>> {
        let source = self.server.name().clone();
        if !github.is_app() || !self.webhooks {
            return Ok(Ok(()));
        }
        let now = self.clock.now();
        let oldest = now - DELIVERIES_KEPT;
        let since = match self.looked_at_deliveries {
            Some(at) => at - OVERLAP,
            // After a start: from the last stored delivery on. Without any stored delivery, from now on.
            None => self.reader.newest_delivery(&source).await?.unwrap_or(now) - OVERLAP,
        };
        let deliveries = match github.hook_deliveries(since.max(oldest)).await {
            Ok(deliveries) => deliveries,
            Err(error) => return Ok(Err(error.into())),
        };
        for missed in missed(&deliveries) {
            if self.asked_again.contains(&missed.guid) || self.reader.knows_delivery(&source, &missed.guid).await? {
                continue;
            }
            tracing::info!(delivery.guid = missed.guid, "asking GitHub to redeliver a missed webhook");
            if let Err(error) = github.redeliver(missed.id).await {
                return Ok(Err(error.into()));
            }
            metrics::counter!("mayfly_webhooks_redelivered_total").increment(1);
            self.asked_again.insert(missed.guid.clone());
        }
        self.looked_at_deliveries = Some(now);
        Ok(Ok(()))
    }

    /// Pools that take jobs of this source.
    async fn enabled_pools(&self) -> Result<Vec<Pool>> {
        let known = self.reader.known_pools(&self.pools).await?;
        let pools = known.into_values().map(|known| known.pool);
        Ok(pools.filter(|pool| pool.enabled && pool.job_source == *self.server.name()).collect())
    }

    /// Repositories that are known by name, and whose jobs a pool takes.
    async fn repositories(&self, pools: &[Pool]) -> Result<Vec<Scope>> {
        let source = self.server.name();
        // The server's own spelling comes first: names that people wrote may differ in case.
        let mut names = self.reader.job_repositories(source).await?;
        for pool in pools {
            if let Scope::Repository { .. } = pool.scope {
                names.push(pool.scope.slug());
            }
            names.extend(pool.repositories.iter().filter(|name| !name.contains('*')).cloned());
        }
        let mut seen = HashSet::new();
        names.retain(|name| pools.iter().any(|pool| pool.allows(source, name)) && seen.insert(folded(name)));
        Ok(names.iter().filter_map(|name| Scope::repository(name).ok()).collect())
    }
}

impl JobUpdateFeed for Poll {
    fn name(&self) -> &'static str {
        "poll"
    }

    fn listen(&mut self) -> BoxFuture<'_, Result<Vec<ReceivedUpdate>>> {
        Box::pin(async move {
            // The first poll runs at once, for changes that happened while the service was down.
            if !std::mem::take(&mut self.first) {
                // Jitter, so that hosts that share a server do not poll at the same moment.
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
