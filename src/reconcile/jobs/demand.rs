//! Creates and ends vms for the jobs of pools. If the CI server gives a job to any matching runner, the vms of a pool
//! without a job are counted against its jobs without a vm, no matter which vm was created for which job. If the CI
//! server binds a job to its runner (`SourceKind::binds_jobs`), each job is paired with its vm.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{
    plan::{bound_plan, has_no_known_job, plan},
    settings::Settings,
    updates::JobUpdates,
};
use crate::{
    admission::VmAdmission,
    domain::{
        Announcer, Code, Event, Pool, Result, RunnerStatus, SourceKind,
        job::Job,
        job_record::{JobKey, JobStatus},
    },
    parts::Parts,
    platform::Clock,
    sources::{Sources, deliveries::FoundJob, runner::Claim},
    store::{Change, Expect, Ledger, Reader},
};

/// Pause after an internal failure (the database).
const PAUSE: Duration = Duration::from_secs(2);
/// Without any change, demand is computed again after this time.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause before a refused vm is requested again.
const REFUSED_PAUSE: SignedDuration = SignedDuration::from_secs(30);

/// Creates and ends vms of pools according to their jobs.
#[derive(Clone)]
pub(super) struct PoolDemand {
    ledger: Ledger,
    reader: Reader,
    sources: Sources,
    clock: Clock,
    admission: VmAdmission,
    updates: JobUpdates,
    settings: Settings,
}

impl PoolDemand {
    pub fn new(parts: &Parts, admission: VmAdmission, updates: JobUpdates, settings: Settings) -> Self {
        let Parts { ledger, reader, sources, clock, .. } = parts.clone();
        Self { ledger, reader, sources, clock, admission, updates, settings }
    }

    pub async fn meet_forever(self) {
        let mut changes = self.ledger.changes().subscribe();
        loop {
            let next = match self.meet().await {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(error = %error, "cannot create or end vms for jobs");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let until = async {
                match next {
                    Some(at) => self.clock.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.updates.changed() => {}
                () = self.ledger.changes().pools_changed() => {}
                () = until => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
                () = pool_vm_changed(&mut changes) => {}
            }
        }
    }

    /// Creates and ends vms for all pools. Returns when a job that has to wait may get a vm.
    async fn meet(&self) -> Result<Option<Timestamp>> {
        let (mut next, need_request) = self.meet_without_requests().await?;
        for (pool, job) in need_request {
            let again = self.ask_and_create_vm(&pool, &job).await?;
            next = [next, again].into_iter().flatten().min();
        }
        Ok(next)
    }

    /// Creates and ends vms without requests to the CI server. Returns the jobs that need a request first: jobs for which a
    /// vm was created before (are they still queued?), and jobs that have to be reserved.
    async fn meet_without_requests(&self) -> Result<(Option<Timestamp>, Vec<(Pool, Job)>)> {
        let _alone = self.updates.lock().await;
        let mut need_request = Vec::new();
        let mut jobs = self.reader.open_jobs().await?;
        let known = self.reader.known_pools(&self.settings.pools).await?;
        let pools: Vec<Pool> = known.into_values().map(|known| known.pool).collect();
        let vms = self.reader.live_vms().await?;
        self.assign(&mut jobs, &pools).await?;
        let now = self.clock.now();
        let mut next = None;
        for pool in &pools {
            let bound = self.sources.kind(&pool.job_source).is_some_and(SourceKind::binds_jobs);
            let plan = if bound {
                bound_plan(pool, &jobs, &vms, now)
            } else {
                plan(pool, &jobs, &vms, now, self.settings.report_late)
            };
            next = [next, plan.look_again].into_iter().flatten().min();
            for id in plan.end {
                if let Some(vm) = vms.iter().find(|vm| vm.id() == id) {
                    tracing::info!(vm.id = %id, pool.name = pool.name, "ending a vm that no job needs any more");
                    let expect = Expect::Generation(vm.generation);
                    let ended = self.ledger.apply(id, expect, Event::EndAnnounced { by: Announcer::Pool }, now).await?;
                    if !ended.as_expected {
                        // It changed meanwhile, and may have a job now.
                        next = Some(now);
                    }
                }
            }
            for key in plan.make {
                let Some(job) = jobs.iter().find(|job| job.record.key() == key) else { continue };
                if job.tries > 0 || bound {
                    need_request.push((pool.clone(), job.clone()));
                } else {
                    let again = self.make_vm(pool, job.clone(), now).await?;
                    next = [next, again].into_iter().flatten().min();
                }
            }
        }
        for (status, n) in count(&jobs) {
            metrics::gauge!("mayfly_jobs", "status" => status).set(n);
        }
        Ok((next, need_request))
    }

    /// Creates a vm for a job about which the CI server has to be asked first. A previous vm of it may have run the job while
    /// the webhooks about it are late or lost.
    async fn ask_and_create_vm(&self, pool: &Pool, job: &Job) -> Result<Option<Timestamp>> {
        if let Some(server) = self.sources.server(&job.record.source) {
            let seen = if job.tries > 0 { server.job(job).await } else { Ok(FoundJob::Unclear) };
            match seen {
                Ok(FoundJob::Here(update)) => {
                    if update.record.key() != job.record.key() {
                        self.updates.apply(&job.superseded()).await?;
                    }
                    self.updates.apply(&update).await?;
                    if update.record.status > JobStatus::Queued {
                        return Ok(None);
                    }
                }
                // The job cannot be read, or no longer exists: then no webhook will report it, and no runner will get it.
                Ok(FoundJob::Missing | FoundJob::Unclear) => {}
                Err(error) => {
                    tracing::warn!(job.source = %job.record.source, job.id = %job.record.id, error = %error, "cannot ask the CI server whether the job is still queued");
                    return self.postpone(job).await;
                }
            }
            match server.claim(job).await {
                Ok(Claim::Granted) => {}
                Ok(claim @ (Claim::Paused | Claim::Taken)) => {
                    tracing::info!(job.source = %job.record.source, job.id = %job.record.id, ?claim, "no vm is made for the job for now");
                    return self.postpone(job).await;
                }
                Err(error) => {
                    tracing::warn!(job.source = %job.record.source, job.id = %job.record.id, error = %error, "cannot reserve a job at its CI server");
                    return self.postpone(job).await;
                }
            }
        }
        let given_up = {
            let _alone = self.updates.lock().await;
            let Some(mut job) = self.reader.job(&job.record.key()).await?.filter(Job::waits) else { return Ok(None) };
            if job.counted_vm != job.created_vm
                && let Some(worked) = self.last_vm_worked(&job).await?
            {
                job.failed_vms = if worked { 0 } else { job.failed_vms + 1 };
                job.counted_vm = job.created_vm;
            }
            if !job.is_given_up() {
                return self.make_vm(pool, job, self.clock.now()).await;
            }
            job
        };
        self.give_up(pool, given_up).await
    }

    /// The job is looked at again after a pause.
    async fn postpone(&self, job: &Job) -> Result<Option<Timestamp>> {
        let _alone = self.updates.lock().await;
        let Some(mut job) = self.reader.job(&job.record.key()).await? else { return Ok(None) };
        job.not_before = Some(self.clock.now() + REFUSED_PAUSE);
        let again = job.not_before;
        self.ledger.put_job(job).await?;
        Ok(again)
    }

    /// No more vms are made for this job. Where the CI server can be told, the job ends there, and its page says why. The
    /// server is told before the job is recorded as given up: if that is interrupted, the next try finds the job's end there.
    async fn give_up(&self, pool: &Pool, job: Job) -> Result<Option<Timestamp>> {
        tracing::warn!(
            job.source = %job.record.source, job.id = %job.record.id, pool.name = pool.name, vms = job.failed_vms,
            "no more vms are made for a job: too many in a row have ended without a job"
        );
        let told = match self.sources.server(&job.record.source) {
            Some(server) => server.fail_job(&job, &self.why_given_up(pool, &job).await?).await,
            None => Ok(false),
        };
        match told {
            Ok(true) => {
                let mut update = job.superseded();
                update.record.conclusion = Some("failure".to_owned());
                self.updates.apply(&update).await?;
                Ok(None)
            }
            Ok(false) => {
                let _alone = self.updates.lock().await;
                if self.reader.job(&job.record.key()).await?.is_some_and(|now| now.waits()) {
                    self.ledger.put_job(job).await?;
                }
                Ok(None)
            }
            Err(error) => {
                tracing::warn!(job.source = %job.record.source, job.id = %job.record.id, error = %error, "cannot end a job at its CI server");
                self.postpone(&job).await
            }
        }
    }

    /// For the page of the job.
    async fn why_given_up(&self, pool: &Pool, job: &Job) -> Result<String> {
        let last = match job.created_vm {
            Some(id) => self.reader.vm(id).await?,
            None => None,
        };
        let outcome = last.and_then(|vm| vm.outcome.clone());
        let code = outcome.as_ref().and_then(|outcome| outcome.code).map_or("none", Code::slug);
        let detail =
            outcome.and_then(|outcome| outcome.detail).map(|detail| format!(" ({detail})")).unwrap_or_default();
        Ok(format!(
            "Mayfly could not run this job: {} virtual machines of its pool {} in a row ended without it. Error of the last one: \
             {code}{detail}. The job can be run again when an administrator of Mayfly has repaired the cause.",
            job.failed_vms, pool.name
        ))
    }

    /// Whether the last vm that was made for the job got any job. `None`: its record is gone, or it lives.
    async fn last_vm_worked(&self, job: &Job) -> Result<Option<bool>> {
        let Some(id) = job.created_vm else { return Ok(None) };
        let vm = self.reader.vm(id).await?.filter(|vm| vm.outcome.is_some());
        Ok(vm.map(|vm| vm.shows_a_job()))
    }

    /// Assigns queued jobs to the first pool that takes them; repeated because pools are added, removed and changed.
    async fn assign(&self, jobs: &mut [Job], pools: &[Pool]) -> Result<()> {
        for job in jobs.iter_mut().filter(|job| job.vm.is_none() && !job.is_over()) {
            let source = &job.record.source;
            let kind = self.sources.kind(source);
            let wants =
                |pool: &&Pool| kind.is_some_and(|kind| pool.wants(source, kind, &job.record.repository, &job.labels));
            let still = job.pool.as_ref().and_then(|name| pools.iter().find(|pool| pool.name == *name)).filter(wants);
            let pool = still.or_else(|| pools.iter().find(wants)).map(|pool| pool.name.clone());
            if pool != job.pool {
                job.pool = pool;
                self.ledger.put_job(job.clone()).await?;
            }
        }
        Ok(())
    }

    /// Creates a vm for a job. If it is refused, returns when to try again.
    async fn make_vm(&self, pool: &Pool, mut job: Job, now: Timestamp) -> Result<Option<Timestamp>> {
        // The idempotency key makes a repetition after a crash return the same vm.
        let JobKey { source, id, attempt } = job.record.key();
        let key = format!("job-{source}-{id}-{attempt}-{}", job.tries + 1);
        let again = match self.admission.create_for_pool(pool, &job.record.id, key).await {
            Ok(created) => {
                tracing::info!(vm.id = %created.vm.id(), job.id = %job.record.id, pool.name = pool.name, "created a vm for a job");
                job.created_vm = Some(created.vm.id());
                job.tries += 1;
                job.not_before = Some(now + self.pause_after(job.tries));
                None
            }
            // The pool was changed between the crash and now.
            Err(error) if error.code == Code::IdempotencyMismatch => {
                job.tries += 1;
                Some(now)
            }
            Err(error) => {
                tracing::warn!(job.id = %job.record.id, pool.name = pool.name, error = %error, "cannot create a vm for a job");
                job.not_before = Some(now + REFUSED_PAUSE);
                job.not_before
            }
        };
        self.ledger.put_job(job).await?;
        Ok(again)
    }

    fn pause_after(&self, tries: u32) -> SignedDuration {
        let settings = &self.settings;
        let pause = settings.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(10));
        SignedDuration::try_from(pause.min(settings.longest_pause)).unwrap_or(SignedDuration::MAX)
    }
}

fn count(jobs: &[Job]) -> [(&'static str, u32); 3] {
    use crate::domain::job_record::JobStatus as S;
    [S::Waiting, S::Queued, S::InProgress].map(|status| {
        let ours = jobs.iter().filter(|job| job.pool.is_some() && job.status() == status);
        (status.as_str(), u32::try_from(ours.count()).unwrap_or(u32::MAX))
    })
}

/// Returns when a vm of a pool has changed in a way that changes demand.
async fn pool_vm_changed(changes: &mut broadcast::Receiver<Change>) {
    loop {
        match changes.recv().await {
            Ok(Change { vm, .. })
                if vm.spec.pool.is_some() && (!has_no_known_job(&vm) || vm.runner_status == RunnerStatus::Busy) =>
            {
                return;
            }
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => return,
            Err(RecvError::Closed) => return std::future::pending().await,
        }
    }
}
