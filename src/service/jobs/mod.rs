//! Jobs of GitHub's: heard of by some source, written down, bound to the vm whose runner has them, and given vms.
//!
//! ```text
//! webhooks ─┐
//! poll ─────┼─ news ─▶ heard   one job, never backwards; its vm learns of it
//! …        ─┘           │
//!                       ▼
//!                     demand   per pool: as many vms without a job as there are jobs without a vm
//! ```
//!
//! Everything rests on rows, and each step may be done twice: a restart does the same things again.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use jiff::SignedDuration;
use secrecy::SecretString;
use tokio::sync::{Mutex, Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Service;
use crate::{
    domain::{
        Code, Error, Event, Pool, Result, Vm,
        github::{JobStatus, Registration},
        job::{Job, News},
    },
    platform::tasks,
    store::Expect,
};

mod demand;
mod poll;
mod webhooks;

/// After a failure of ours (the database), before the same is tried again.
const PAUSE: Duration = Duration::from_secs(2);
/// How often old records are looked for.
const TIDY_EVERY: Duration = Duration::from_secs(3600);

#[derive(Clone, Debug)]
pub struct Settings {
    /// Of GitHub's webhook. Several, so that one can be replaced without a gap.
    pub webhook_secrets: Vec<SecretString>,
    /// How often GitHub is asked for what webhooks lost. `None`: never.
    pub poll_every: Option<Duration>,
    /// How long jobs that are over, and deliveries, are remembered. Late news must not bring a job back.
    pub keep: Duration,
    /// Before another vm is made for a job whose vm came to nothing; doubles each time, up to `longest_pause`.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            webhook_secrets: Vec::new(),
            poll_every: Some(Duration::from_secs(60)),
            keep: Duration::from_secs(7 * 24 * 3600),
            first_pause: Duration::from_secs(15),
            longest_pause: Duration::from_secs(600),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Raised when a webhook was stored.
    pub delivered: Notify,
    /// Raised when there is news of jobs.
    news: Notify,
    /// Held while jobs are changed: what is read stays true until it is written.
    writing: Mutex<()>,
}

/// News, and what its source knows it by.
pub(super) struct Told {
    pub receipt: Option<i64>,
    pub news: News,
}

/// Where news of jobs comes from. What comes behind it does not know which one it was.
pub(super) trait JobSource: Send {
    fn name(&self) -> &'static str;

    /// Waits until there is something to tell. What was told and not written down is told again.
    fn listen<'a>(&'a mut self, service: &'a Service) -> BoxFuture<'a, Result<Vec<Told>>>;

    /// It was written down.
    fn written<'a>(&'a mut self, service: &'a Service, told: Told) -> BoxFuture<'a, Result<()>>;
}

impl Service {
    /// Follows GitHub's jobs until `shutdown`.
    pub async fn run_jobs(self, shutdown: CancellationToken) {
        let mut sources: Vec<Box<dyn JobSource>> = vec![Box::new(webhooks::Deliveries)];
        if let (Some(github), Some(every)) = (&self.github, self.settings.jobs.poll_every) {
            sources.push(Box::new(poll::Poll::new(github.clone(), every)));
        }
        let tracker = TaskTracker::new();
        let spawn = |work: BoxFuture<'static, ()>| {
            let shutdown = shutdown.clone();
            tracker.spawn(async move { shutdown.run_until_cancelled_owned(work).await });
        };
        let service = Arc::new(self);
        for source in sources {
            spawn(Box::pin(service.clone().follow(source)));
        }
        let this = service.clone();
        spawn(Box::pin(tasks::keep_running("demand", move || this.clone().meet_demand_forever())));
        spawn(Box::pin(tasks::keep_running("old jobs", move || service.clone().forget_old_jobs_forever())));
        tracker.close();
        tracker.wait().await;
    }

    async fn follow(self: Arc<Self>, mut source: Box<dyn JobSource>) {
        while tasks::survived(source.name(), self.follow_once(&mut *source)).await.is_none() {}
    }

    async fn follow_once(&self, source: &mut dyn JobSource) {
        loop {
            let result = async {
                for told in source.listen(self).await? {
                    self.heard(&told.news).await?;
                    source.written(self, told).await?;
                }
                Ok::<_, Error>(())
            };
            if let Err(error) = result.await {
                tracing::error!(source = source.name(), error = %error, "news of jobs could not be written down");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Writes down what was heard of a job, and tells the vm whose runner has it.
    async fn heard(&self, news: &News) -> Result<()> {
        let _alone = self.job_board.writing.lock().await;
        let now = self.clock.now();
        let known = self.reader.job(news.record.id).await?;
        let new = known.is_none();
        let mut job = match known {
            Some(mut job) => {
                job.learn(news, now);
                job
            }
            None => {
                let mut job = Job::new(news.clone(), now);
                job.pool = self.pool_of(&job).await?;
                job
            }
        };
        // Only the runner that this news names: GitHub takes a job back that its runner did not begin with, and gives it to
        // another one. A name that GitHub leaves empty is nobody's.
        let named = match news.runner_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) if news.record.status == job.record.status => self.reader.vms_of_runner(name).await?,
            _ => Vec::new(),
        };
        // Two places may have runners of one name: those that callers bring are called as they like.
        let vm = named.iter().find(|vm| may_have(vm, &news.record.repository)).map(Vm::id);
        job.vm = vm.or(job.vm);
        if new {
            let pool = job.pool.as_deref().unwrap_or_default();
            tracing::info!(
                job.id = job.record.id, job.repository = %job.record.repository, pool.name = pool,
                status = job.record.status.as_str(), "heard of a job"
            );
            let wanted = if job.pool.is_some() { "yes" } else { "no" };
            metrics::counter!("mayfly_jobs_heard_total", "source" => news.heard.as_str(), "wanted" => wanted)
                .increment(1);
        }
        let record = job.record.clone();
        self.ledger.put_job(job).await?;
        // Told again each time, because the last time may have ended right before it; what is known already is ignored.
        if let Some(vm) = vm
            && record.status >= JobStatus::InProgress
        {
            let event = Event::JobChanged { job: record };
            let told = self.ledger.apply(vm, Expect::Anything, event, now).await.map_err(Error::from);
            // Its record may have been forgotten; the job's stays.
            if let Err(error) = told
                && error.code != Code::VmNotFound
            {
                return Err(error);
            }
        }
        self.job_board.news.notify_one();
        Ok(())
    }

    /// The first pool, by name, that wants it.
    async fn pool_of(&self, job: &Job) -> Result<Option<String>> {
        let wants = |pool: &Pool| pool.wants(&job.record.repository, &job.labels);
        Ok(self.pools().await?.into_iter().find(wants).map(|pool| pool.name))
    }

    async fn forget_old_jobs_forever(self: Arc<Self>) {
        loop {
            let keep = SignedDuration::try_from(self.settings.jobs.keep).unwrap_or(SignedDuration::MAX);
            if let Ok(before) = self.clock.now().checked_sub(keep) {
                let result = async {
                    self.ledger.forget_jobs(before).await?;
                    self.ledger.forget_deliveries(before).await
                };
                if let Err(error) = result.await {
                    tracing::error!(error = %error, "old jobs could not be forgotten");
                }
            }
            tokio::time::sleep(TIDY_EVERY).await;
        }
    }
}

/// Whether GitHub may give jobs of this repository to the vm's runner. A name that we made is nobody else's, even where the
/// repository is called differently by now.
fn may_have(vm: &Vm, repository: &str) -> bool {
    let (Some(runner), Some((owner, name))) = (&vm.draft.github, repository.split_once('/')) else { return false };
    runner.registration == Registration::Managed || runner.scope.covers(owner, name)
}
