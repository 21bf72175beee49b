//! Starts the loops of jobs: the feeds of updates, the creation of vms for jobs, and the removal of old rows.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    demand::PoolDemand, poll::Poll, settings::Settings, update_feed::JobUpdateFeed, updates::JobUpdates,
    webhooks::Deliveries,
};
use crate::{admission::VmAdmission, domain::Error, parts::Parts, platform::tasks, reconcile::retention::JobRetention};

/// Pause after an internal failure (the database).
const PAUSE: Duration = Duration::from_secs(2);

/// Runs the feeds of job updates, applies their updates, and creates vms for jobs.
pub struct JobLoops {
    feeds: Vec<Box<dyn JobUpdateFeed>>,
    updates: JobUpdates,
    demand: PoolDemand,
    retention: JobRetention,
}

impl JobLoops {
    pub fn new(parts: &Parts, admission: VmAdmission, settings: Settings) -> Self {
        let updates = JobUpdates::new(parts, settings.pools.clone());
        let mut feeds: Vec<Box<dyn JobUpdateFeed>> = vec![Box::new(Deliveries::new(parts))];
        for (_, source) in parts.sources.iter() {
            if let (Some(server), Some(every)) = (&source.server, source.poll_every) {
                feeds.push(Box::new(Poll::new(parts, server.clone(), every, source.webhooks, &settings)));
            }
        }
        let retention = JobRetention::new(parts, settings.keep);
        let demand = PoolDemand::new(parts, admission, updates.clone(), settings);
        Self { feeds, updates, demand, retention }
    }

    pub async fn run(self, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        let spawn = |work: BoxFuture<'static, ()>| {
            let shutdown = shutdown.clone();
            tracker.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
        };
        let Self { feeds, updates, demand, retention } = self;
        for feed in feeds {
            spawn(Box::pin(follow(feed, updates.clone())));
        }
        spawn(Box::pin(tasks::keep_running("demand", move || demand.clone().meet_forever())));
        spawn(Box::pin(tasks::keep_running("old jobs", move || retention.clone().retain_forever())));
        tracker.close();
        tracker.wait().await;
    }
}

async fn follow(mut feed: Box<dyn JobUpdateFeed>, updates: JobUpdates) {
    while tasks::run_catching_panic(feed.name(), follow_once(&mut *feed, &updates)).await.is_none() {}
}

async fn follow_once(feed: &mut dyn JobUpdateFeed, updates: &JobUpdates) {
    loop {
        let result = async {
            for received in feed.listen().await? {
                updates.apply(&received.update).await?;
                feed.applied(received).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = result.await {
            tracing::error!(feed = feed.name(), error = %error, "cannot apply job updates");
            tokio::time::sleep(PAUSE).await;
        }
    }
}
