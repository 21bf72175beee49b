//! Applies updates of jobs to the jobs' rows and to the vms whose runners have the jobs.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, Notify};

use crate::{
    domain::{
        Code, Error, Event, Pool, Result, SourceKind, Vm, VmId,
        job::{Job, JobUpdate},
        job_record::{JobRecord, JobStatus},
        source_runner::Registration,
    },
    parts::Parts,
    platform::Clock,
    sources::Sources,
    store::{Expect, Ledger, Reader},
};

#[derive(Debug, Default)]
struct Board {
    /// Notified when a job has changed.
    changed: Notify,
    /// Held while jobs are changed, so that what was read is still true when it is written.
    writing: Mutex<()>,
}

/// The only writer of jobs. Cheap to clone.
#[derive(Clone)]
pub(super) struct JobUpdates {
    ledger: Ledger,
    reader: Reader,
    clock: Clock,
    sources: Sources,
    /// From the configuration.
    pools: Arc<[Pool]>,
    board: Arc<Board>,
}

impl JobUpdates {
    pub fn new(parts: &Parts, pools: Arc<[Pool]>) -> Self {
        let Parts { ledger, reader, clock, sources, .. } = parts.clone();
        Self { ledger, reader, clock, sources, pools, board: Arc::default() }
    }

    /// Excludes other changes of jobs between a read and the write that depends on it.
    pub async fn lock(&self) -> MutexGuard<'_, ()> {
        self.board.writing.lock().await
    }

    /// Returns when a job has changed since the last call.
    pub async fn changed(&self) {
        self.board.changed.notified().await;
    }

    /// Applies an update to its job, and to the vm whose runner has it.
    pub async fn apply(&self, update: &JobUpdate) -> Result<()> {
        let _alone = self.lock().await;
        let now = self.clock.now();
        let known = self.reader.job(&update.record.key()).await?;
        let new = known.is_none();
        let mut job = match known {
            Some(mut job) => {
                job.apply_update(update, now);
                job
            }
            None => {
                let mut job = Job::new(update.clone(), now);
                job.pool = self.pool_of(&job).await?;
                job
            }
        };
        // Only the runner that this update names: GitHub takes a job back from a runner that did not start it, and
        // gives it to another one. GitHub may leave the name empty, which means no runner.
        let named = match update.runner_name.as_deref().filter(|name| !name.is_empty() && !update.missing) {
            Some(name) if update.record.status == job.record.status => self.reader.vms_of_runner(name).await?,
            _ => Vec::new(),
        };
        // Two scopes may have runners with the same name: names of runners that callers register are chosen by them.
        let vm = match named.iter().find(|vm| may_have(vm, &update.record)).map(Vm::id) {
            None if !update.missing && update.record.status == job.record.status => self.vm_with(&job).await?,
            vm => vm,
        };
        job.vm = vm.or(job.vm);
        if new {
            let pool = job.pool.as_deref().unwrap_or_default();
            tracing::info!(
                job.source = %job.record.source, job.id = %job.record.id, job.repository = %job.record.repository, pool.name = pool,
                status = job.status().as_str(), "job updated"
            );
            let wanted = if job.pool.is_some() { "yes" } else { "no" };
            metrics::counter!("mayfly_jobs_heard_total", "source" => update.source.as_str(), "wanted" => wanted)
                .increment(1);
        }
        let record = job.record.clone();
        self.ledger.put_job(job).await?;
        // Applied with every update, because the service may have ended between the job's row and the vm's event. The
        // lifecycle table ignores known facts.
        if let Some(vm) = vm
            && record.status >= JobStatus::InProgress
        {
            let event = Event::JobChanged { job: record };
            let applied = self.ledger.apply(vm, Expect::Anything, event, now).await.map_err(Error::from);
            // The vm's record may have been deleted; the job's record stays.
            if let Err(error) = applied
                && error.code != Code::VmNotFound
            {
                return Err(error);
            }
        }
        self.board.changed.notify_one();
        Ok(())
    }

    /// The vm whose runner was made for this job, at a server that reports no runners, if it has begun the job.
    async fn vm_with(&self, job: &Job) -> Result<Option<VmId>> {
        let binds = self.sources.kind(&job.record.source).is_some_and(SourceKind::binds_jobs);
        let Some(id) = job.created_vm.filter(|_| binds && job.record.status >= JobStatus::InProgress) else {
            return Ok(None);
        };
        let has_it = |vm: &Vm| {
            let registered = vm.registered.as_ref().and_then(|registered| registered.runner_id.as_ref());
            // A job that was cancelled before its agent took it was never in its vm.
            registered == Some(&job.record.id) && (job.record.status == JobStatus::InProgress || vm.shows_a_job())
        };
        Ok(self.reader.vm(id).await?.filter(has_it).map(|vm| vm.id()))
    }

    /// The first pool, by name, that takes the job.
    async fn pool_of(&self, job: &Job) -> Result<Option<String>> {
        let source = &job.record.source;
        let Some(kind) = self.sources.kind(source) else { return Ok(None) };
        let wants = |pool: &Pool| pool.wants(source, kind, &job.record.repository, &job.labels);
        Ok(self
            .reader
            .known_pools(&self.pools)
            .await?
            .into_values()
            .map(|known| known.pool)
            .find(wants)
            .map(|pool| pool.name))
    }
}

/// Whether the server may give this job to the vm's runner. A name that Mayfly chose is unique, so it counts even if the
/// repository was renamed.
fn may_have(vm: &Vm, job: &JobRecord) -> bool {
    let Some(runner) = vm.spec.source_runner.as_ref().filter(|runner| runner.source == job.source) else {
        return false;
    };
    let covers = || job.repository.split_once('/').is_some_and(|(owner, name)| runner.scope.covers(owner, name));
    runner.registration == Registration::Managed || covers()
}
