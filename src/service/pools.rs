//! Pools: those of the configuration, which are read at the start, and those that were made through the API.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Service,
    vms::{Runner, VmRequest},
};
use crate::{
    domain::{Asked, Code, Error, Fault, Pool, Result, pool::PoolSource},
    registry::oci::reference::{Reference, ReferenceError},
    store::pools::{PoolVms, StoredPool},
};

/// What is known of pools besides their settings. In memory: what still fails after a start fails again, and is known again.
#[derive(Debug, Default)]
pub(crate) struct Board {
    /// Raised when there is another pool, or one has changed or gone.
    pub changed: Notify,
    /// Why the last vm that was wanted for a pool was not even accepted.
    refused: Mutex<BTreeMap<String, Fault>>,
    /// Pools whose gauges were set.
    measured: Mutex<BTreeSet<String>>,
}

impl Board {
    fn refused(&self) -> parking_lot::MutexGuard<'_, BTreeMap<String, Fault>> {
        self.refused.lock()
    }

    /// What came of asking for a vm of this pool.
    pub fn note(&self, pool: &str, came: Result<(), &Error>, at: Timestamp) {
        match came {
            Ok(()) => self.refused().remove(pool),
            Err(error) => {
                self.refused().insert(pool.to_owned(), Fault { code: error.code, detail: error.detail.clone(), at })
            }
        };
    }
}

/// A pool and how it is doing.
#[derive(Clone, Debug)]
pub struct PoolState {
    pub pool: Pool,
    pub source: PoolSource,
    /// Null of those of the configuration.
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
    pub vms: PoolVms,
    /// Jobs that it wants and that have no runner yet.
    pub jobs_waiting: u32,
    /// The newest vm that failed or was refused.
    pub last_error: Option<Fault>,
}

impl Service {
    /// Every pool, by name. One of the configuration hides one of the API with the same name.
    pub async fn pools(&self) -> Result<Vec<Pool>> {
        Ok(self.all_pools().await?.into_values().map(|(pool, ..)| pool).collect())
    }

    /// Waits until pools have changed since this was last called.
    pub async fn pools_changed(&self) {
        self.pool_board.changed.notified().await;
    }

    async fn all_pools(&self) -> Result<BTreeMap<String, (Pool, PoolSource, Option<StoredPool>)>> {
        let stored = self.reader.pools().await?.into_iter();
        let stored = stored.map(|s| (s.pool.name.clone(), (s.pool.clone(), PoolSource::Api, Some(s))));
        let configured = self.settings.pools.iter();
        let configured = configured.map(|pool| (pool.name.clone(), (pool.clone(), PoolSource::Config, None)));
        // The later one of two with the same name stays.
        Ok(stored.chain(configured).collect())
    }

    pub async fn list_pools(&self) -> Result<Vec<PoolState>> {
        let (vms, jobs) = (self.reader.vms_by_pool().await?, self.reader.jobs_waiting_by_pool().await?);
        let mut states = Vec::new();
        for (name, (pool, source, stored)) in self.all_pools().await? {
            let vms = vms.get(&name).copied().unwrap_or_default();
            let waiting = jobs.get(&name).copied().unwrap_or_default();
            states.push(self.pool_state(pool, source, stored, vms, waiting).await?);
        }
        Ok(states)
    }

    pub async fn get_pool(&self, name: &str) -> Result<PoolState> {
        let (pool, source, stored) = match self.configured_pool(name) {
            Some(pool) => (pool.clone(), PoolSource::Config, None),
            None => {
                let stored = self.reader.pool_named(name).await?.ok_or_else(|| no_pool(name))?;
                (stored.pool.clone(), PoolSource::Api, Some(stored))
            }
        };
        let vms = self.reader.vms_by_pool().await?.get(name).copied().unwrap_or_default();
        let waiting = self.reader.jobs_waiting_by_pool().await?.get(name).copied().unwrap_or_default();
        self.pool_state(pool, source, stored, vms, waiting).await
    }

    async fn pool_state(
        &self,
        pool: Pool,
        source: PoolSource,
        stored: Option<StoredPool>,
        vms: PoolVms,
        jobs_waiting: u32,
    ) -> Result<PoolState> {
        let refused = self.pool_board.refused().get(&pool.name).cloned();
        let failed = self.reader.newest_failed_of_pool(&pool.name).await?.and_then(|vm| {
            let outcome = vm.outcome.as_ref()?;
            let spoken = |detail: &String| format!("vm {}: {detail}", vm.draft.name);
            let code = outcome.code?;
            let detail = outcome.detail.as_ref().map_or_else(|| spoken(&code.title().to_owned()), spoken);
            // A vm's outcome is set where its end begins; what follows is cleaning up.
            Some(Fault { code, detail, at: vm.deleted_at().unwrap_or(vm.updated_at) })
        });
        let last_error = [refused, failed].into_iter().flatten().max_by_key(|fault| fault.at);
        let (created_at, updated_at) = (stored.as_ref().map(|s| s.created_at), stored.as_ref().map(|s| s.updated_at));
        Ok(PoolState { pool, source, created_at, updated_at, vms, jobs_waiting, last_error })
    }

    /// Sets the gauges of pools. One that is gone shows 0 until the service ends: a gauge that was set is not taken back.
    pub(super) async fn measure_pools(&self) -> Result<()> {
        let vms = self.reader.vms_by_pool().await?;
        let waiting = self.reader.jobs_waiting_by_pool().await?;
        let pools: BTreeMap<String, u32> = self.pools().await?.into_iter().map(|p| (p.name, p.max_vms)).collect();
        let mut measured = self.pool_board.measured.lock();
        measured.extend(vms.keys().chain(pools.keys()).cloned());
        for pool in measured.iter() {
            let PoolVms { queued, live } = vms.get(pool).copied().unwrap_or_default();
            for (state, n) in [("queued", queued), ("live", live)] {
                metrics::gauge!("mayfly_pool_vms", "pool" => pool.clone(), "state" => state).set(n);
            }
            let max = pools.get(pool).copied().unwrap_or_default();
            let jobs = waiting.get(pool).copied().unwrap_or_default();
            metrics::gauge!("mayfly_pool_jobs_waiting", "pool" => pool.clone()).set(jobs);
            metrics::gauge!("mayfly_pool_vms_max", "pool" => pool.clone()).set(max);
        }
        Ok(())
    }

    fn configured_pool(&self, name: &str) -> Option<&Pool> {
        self.settings.pools.iter().find(|pool| pool.name == name)
    }

    /// Makes the pool, or replaces it: its vms keep what they were made with. Whether it is new.
    pub async fn set_pool(&self, pool: Pool) -> Result<bool> {
        self.own(&pool.name)?;
        pool.check()?;
        self.pool_fits(&pool).await?;
        let (name, template) = (pool.name.clone(), pool.template.clone());
        let new = self.ledger.put_pool(pool, self.clock.now()).await?;
        self.pool_board.note(&name, Ok(()), self.clock.now());
        self.pool_board.changed.notify_one();
        tracing::info!(pool.name = name, template.name = template, new, "pool set");
        Ok(new)
    }

    /// No job gets a vm of it any more; those that are there live on to their ends.
    pub async fn remove_pool(&self, name: &str) -> Result<()> {
        self.own(name)?;
        if !self.ledger.remove_pool(name).await? {
            return Err(no_pool(name));
        }
        self.pool_board.note(name, Ok(()), self.clock.now());
        self.pool_board.changed.notify_one();
        tracing::info!(pool.name = name, "pool removed");
        Ok(())
    }

    fn own(&self, name: &str) -> Result<()> {
        match self.configured_pool(name) {
            None => Ok(()),
            Some(_) => Err(Error::new(
                Code::PoolReadOnly,
                format!(
                    "the pool {name} is set in mayfly.toml; change `[pools.\"{name}\"]` there and restart the service"
                ),
            )),
        }
    }

    /// What this host and this service say against it.
    async fn pool_fits(&self, pool: &Pool) -> Result<()> {
        if self.github.is_none() {
            return Err(Error::new(
                Code::GitHubNotConfigured,
                "pools register runners, and this service has no credentials for GitHub: set `[github]` in mayfly.toml",
            )
            .field("/scope", "needs credentials for GitHub"));
        }
        let asked = Asked {
            cpus: pool.cpus,
            memory_mib: pool.memory_mib,
            budgets: pool.budgets.clone(),
            queue_seconds: self.settings.queue_timeout_seconds,
        };
        let capacity = self.host.capacity();
        asked.before(&self.settings.budgets, &capacity)?;
        if pool.template.contains('/') {
            // An image is pulled when the first job needs it.
            return pool.template.parse::<Reference>().map(drop).map_err(|error: ReferenceError| {
                Error::new(Code::RequestInvalid, "the template is no image that could be pulled")
                    .field("/template", error.to_string())
            });
        }
        let template = self.catalog.get(&pool.template).await.map_err(|error| match error.code {
            Code::TemplateNotFound => Error::new(Code::TemplateUnknown, error.detail)
                .field("/template", "see GET /templates for what is here, or name an image as host/namespace:tag"),
            _ => error,
        })?;
        asked.of(&template, &capacity).map(drop)
    }
}

pub fn no_pool(name: &str) -> Error {
    Error::new(Code::PoolNotFound, format!("no pool has the name {name:.80?}"))
}

impl From<&Pool> for VmRequest {
    /// One vm of the pool, for one job.
    fn from(pool: &Pool) -> VmRequest {
        VmRequest {
            template: pool.template.clone(),
            name: None,
            runner: Runner::GitHub {
                scope: pool.scope.clone(),
                labels: pool.labels.clone(),
                group: pool.group.clone(),
                jit_config: None,
                registration_token: None,
                env: BTreeMap::new(),
            },
            cpus: pool.cpus,
            memory_mib: pool.memory_mib,
            labels: BTreeMap::new(),
            queue_timeout_seconds: None,
            budgets: pool.budgets.clone(),
        }
    }
}
