//! Creates and ends vms for the jobs of pools. Compares counts, not pairs: a CI server gives a job to any matching runner,
//! so a pool needs as many vms without a job as there are jobs without a vm, no matter which vm was created for which
//! job.

use std::{collections::HashSet, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::broadcast::{self, error::RecvError};

use super::{settings::Settings, updates::JobUpdates};
use crate::{
    admission::VmAdmission,
    domain::{
        Announcer, Code, Event, Pool, Result, RunnerStatus, Scope, State, Vm, VmId, job::Job, job_record::JobKey,
    },
    parts::Parts,
    platform::Clock,
    sources::{Sources, deliveries::FoundJob},
    store::{Change, Expect, Ledger, Reader},
};

/// Pause after an internal failure (the database).
const PAUSE: Duration = Duration::from_secs(2);
/// Without any change, demand is computed again after this time.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Pause before a refused vm is requested again.
const REFUSED_PAUSE: SignedDuration = SignedDuration::from_secs(30);

/// What a pool lacks, or has too many of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Plan {
    /// Jobs for which a vm is created now.
    make: Vec<JobKey>,
    /// Vms that are not needed, in the order in which they end.
    end: Vec<VmId>,
    /// When the first job that has to wait for its next vm may get it.
    look_again: Option<Timestamp>,
}

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
        let (mut next, doubtful) = self.meet_certain().await?;
        for (pool, job) in doubtful {
            let again = self.make_another(&pool, &job).await?;
            next = [next, again].into_iter().flatten().min();
        }
        Ok(next)
    }

    /// Like `meet`, except for jobs for which a vm was created before: returns them, because the CI server has to be asked
    /// first whether they are still queued.
    async fn meet_certain(&self) -> Result<(Option<Timestamp>, Vec<(Pool, Job)>)> {
        let _alone = self.updates.lock().await;
        let mut doubtful = Vec::new();
        let mut jobs = self.reader.open_jobs().await?;
        let known = self.reader.known_pools(&self.settings.pools).await?;
        let pools: Vec<Pool> = known.into_values().map(|known| known.pool).collect();
        let vms = self.reader.live_vms().await?;
        self.assign(&mut jobs, &pools).await?;
        let now = self.clock.now();
        let mut next = None;
        for pool in &pools {
            let plan = plan(pool, &jobs, &vms, now, self.settings.report_late);
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
                if job.tries > 0 {
                    doubtful.push((pool.clone(), job.clone()));
                } else {
                    let again = self.make_vm(pool, job.clone(), now).await?;
                    next = [next, again].into_iter().flatten().min();
                }
            }
        }
        for (status, n) in count(&jobs) {
            metrics::gauge!("mayfly_jobs", "status" => status).set(n);
        }
        Ok((next, doubtful))
    }

    /// Creates another vm for a job whose previous vm ended without having run it, as far as is known: the vm may
    /// have run the job while the webhooks about it are late or lost.
    async fn make_another(&self, pool: &Pool, job: &Job) -> Result<Option<Timestamp>> {
        let seen = match (self.sources.server(&job.record.source), Scope::repository(&job.record.repository)) {
            (Some(server), Ok(scope)) => server.job(&scope, job.record.id).await,
            _ => Ok(FoundJob::Missing),
        };
        match seen {
            Ok(FoundJob::Here(update)) => {
                if update.record.key() != job.record.key() {
                    self.updates.apply(&job.superseded()).await?;
                }
                self.updates.apply(&update).await?;
            }
            // The job cannot be read, or no longer exists: then no webhook will report it, and no runner will get it.
            Ok(FoundJob::Missing | FoundJob::Unclear) => {}
            Err(error) => {
                tracing::warn!(job.source = %job.record.source, job.id = job.record.id, error = %error, "cannot ask the CI server whether the job is still queued");
                let _alone = self.updates.lock().await;
                let Some(mut job) = self.reader.job(&job.record.key()).await? else { return Ok(None) };
                job.not_before = Some(self.clock.now() + REFUSED_PAUSE);
                let again = job.not_before;
                self.ledger.put_job(job).await?;
                return Ok(again);
            }
        }
        let _alone = self.updates.lock().await;
        match self.reader.job(&job.record.key()).await? {
            Some(mut job) if job.waits() => {
                if job.counted_vm != job.made
                    && let Some(worked) = self.last_vm_worked(&job).await?
                {
                    job.failed_vms = if worked { 0 } else { job.failed_vms + 1 };
                    job.counted_vm = job.made;
                }
                if job.is_given_up() {
                    tracing::warn!(
                        job.source = %job.record.source, job.id = job.record.id, pool.name = pool.name, vms = job.failed_vms,
                        "no more vms are made for a job: too many in a row have ended without a job"
                    );
                    self.ledger.put_job(job).await?;
                    return Ok(None);
                }
                self.make_vm(pool, job, self.clock.now()).await
            }
            _ => Ok(None),
        }
    }

    /// Whether the last vm that was made for the job got any job. `None`: its record is gone, or it lives.
    async fn last_vm_worked(&self, job: &Job) -> Result<Option<bool>> {
        let Some(id) = job.made else { return Ok(None) };
        let vm = self.reader.vm(id).await?.filter(|vm| vm.outcome.is_some());
        let hook = Some(Announcer::Hook);
        Ok(vm.map(|vm| !vm.jobs.is_empty() || vm.announced_by == hook || vm.runner_status == RunnerStatus::Busy))
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
        let again = match self.admission.create_for_pool(pool, key).await {
            Ok(created) => {
                tracing::info!(vm.id = %created.vm.id(), job.id = job.record.id, pool.name = pool.name, "created a vm for a job");
                job.made = Some(created.vm.id());
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
                tracing::warn!(job.id = job.record.id, pool.name = pool.name, error = %error, "cannot create a vm for a job");
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

/// What a pool needs, from its jobs and vms.
fn plan(pool: &Pool, jobs: &[Job], vms: &[Vm], now: Timestamp, report_late: Duration) -> Plan {
    // A disabled pool takes no more jobs; its vms keep the jobs that they were created for.
    if !pool.enabled {
        return Plan::default();
    }
    let mine: Vec<&Vm> = vms.iter().filter(|vm| vm.spec.pool.as_deref() == Some(pool.name.as_str())).collect();
    // Vms that will take a job, or have just been given one of the waiting jobs.
    let free: Vec<&&Vm> = mine.iter().filter(|vm| is_free(vm, now, report_late)).collect();
    let waiting: Vec<&Job> = jobs.iter().filter(|job| job.waits() && job.pool.as_deref() == Some(&pool.name)).collect();
    let mut plan = Plan::default();
    if free.len() > waiting.len() {
        let wanted: HashSet<VmId> = waiting.iter().filter_map(|job| job.made).collect();
        let mut spare: Vec<&&&Vm> = free.iter().filter(|vm| vm.runner_status != RunnerStatus::Busy).collect();
        // Vms whose own job is not queued end first; among them those without a slot; among them the newest.
        spare.sort_by_key(|vm| (wanted.contains(&vm.id()), vm.state != State::Queued, std::cmp::Reverse(vm.id())));
        plan.end = spare.iter().take(free.len() - waiting.len()).map(|vm| vm.id()).collect();
        return plan;
    }
    let room = usize::try_from(pool.max_vms).unwrap_or(usize::MAX).saturating_sub(mine.len());
    let missing = (waiting.len() - free.len()).min(room);
    let here: HashSet<VmId> = free.iter().map(|vm| vm.id()).collect();
    let may_get_one = |job: &&&Job| !job.is_given_up() && job.made.is_none_or(|vm| !here.contains(&vm));
    for job in waiting.iter().filter(may_get_one) {
        if plan.make.len() == missing {
            break;
        }
        match job.not_before {
            Some(at) if at > now => plan.look_again = [plan.look_again, Some(at)].into_iter().flatten().min(),
            _ => plan.make.push(job.record.key()),
        }
    }
    if !waiting.is_empty() {
        let reported = free.iter().filter(|vm| vm.runner_status == RunnerStatus::Busy);
        let late = reported.filter_map(|vm| vm.runner_changed_at?.checked_add(report_late).ok());
        plan.look_again = late.chain(plan.look_again).min();
    }
    plan
}

/// Whether the vm is there for one of the waiting jobs. If its runner is busy and no report says with which job, it has
/// a job that is not reported here, for example of a repository that sends no webhooks. Before another vm is made for a
/// waiting job, the CI server is asked whether that job still waits.
fn is_free(vm: &Vm, now: Timestamp, report_late: Duration) -> bool {
    let has_another_job = vm.runner_status == RunnerStatus::Busy
        // An error: the clock was set back meanwhile.
        && vm.runner_changed_at.is_none_or(|since| {
            Duration::try_from(now.duration_since(since)).map_or(true, |busy_for| busy_for >= report_late)
        });
    has_no_known_job(vm) && !has_another_job
}

fn has_no_known_job(vm: &Vm) -> bool {
    vm.outcome.is_none() && vm.announced_by.is_none() && vm.done.is_none() && vm.jobs.is_empty()
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

#[cfg(test)]
#[path = "demand_tests.rs"]
mod tests;
