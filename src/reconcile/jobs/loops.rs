use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    demand::PoolDemand, poll::Poll, settings::Settings, source::JobSource, updates::JobUpdates, webhooks::Deliveries,
};
use crate::{admission::VmAdmission, domain::Error, parts::Parts, platform::tasks, reconcile::retention::JobRetention};

/// Pause after an internal failure (the database).
const PAUSE: Duration = Duration::from_secs(2);

/// Runs the job sources, applies their updates, and creates vms for jobs.
pub struct JobLoops {
    sources: Vec<Box<dyn JobSource>>,
    updates: JobUpdates,
    demand: PoolDemand,
    retention: JobRetention,
}

impl JobLoops {
    pub fn new(parts: &Parts, admission: VmAdmission, settings: Settings) -> Self {
        let updates = JobUpdates::new(parts, settings.pools.clone());
        let mut sources: Vec<Box<dyn JobSource>> = vec![Box::new(Deliveries::new(parts))];
        for (_, source) in parts.sources.iter() {
            if let (Some(server), Some(every)) = (&source.server, source.poll_every) {
                sources.push(Box::new(Poll::new(parts, server.clone(), every, source.webhooks, &settings)));
            }
        }
        let retention = JobRetention::new(parts, settings.keep);
        let demand = PoolDemand::new(parts, admission, updates.clone(), settings);
        Self { sources, updates, demand, retention }
    }

    pub async fn run(self, shutdown: CancellationToken) {
        let tracker = TaskTracker::new();
        let spawn = |work: BoxFuture<'static, ()>| {
            let shutdown = shutdown.clone();
            tracker.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
        };
        let Self { sources, updates, demand, retention } = self;
        for source in sources {
            spawn(Box::pin(follow(source, updates.clone())));
        }
        spawn(Box::pin(tasks::keep_running("demand", move || demand.clone().meet_forever())));
        spawn(Box::pin(tasks::keep_running("old jobs", move || retention.clone().retain_forever())));
        tracker.close();
        tracker.wait().await;
    }
}

async fn follow(mut source: Box<dyn JobSource>, updates: JobUpdates) {
    while tasks::survived(source.name(), follow_once(&mut *source, &updates)).await.is_none() {}
}

async fn follow_once(source: &mut dyn JobSource, updates: &JobUpdates) {
    loop {
        let result = async {
            for received in source.listen().await? {
                updates.apply(&received.update).await?;
                source.applied(received).await?;
            }
            Ok::<_, Error>(())
        };
        if let Err(error) = result.await {
            tracing::error!(source = source.name(), error = %error, "cannot apply job updates");
            tokio::time::sleep(PAUSE).await;
        }
    }
}
