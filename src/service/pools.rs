//! Pools: those of the configuration, which are read at the start, and those that were created over the API.

use std::sync::Arc;

use jiff::Timestamp;

use crate::{
    admission::no_source,
    domain::{
        Budgets, Code, Error, Fault, Pool, Result, SourceKind, TemplateOverrides, capacity::Capacity, pool::PoolSource,
        runner::RunnerKind, token_limits::SizeLimits, vm_spec::NetworkUser,
    },
    drivers::registry::DriverRegistry,
    parts::Parts,
    platform::Clock,
    registry::oci::reference::{Reference, ReferenceError},
    sources::Sources,
    store::{
        Ledger, Reader,
        pools::{KnownPool, PoolFaults, PoolVms, StoredPool},
    },
    templates::Catalog,
};

/// A pool and its current state.
#[derive(Clone, Debug)]
pub struct PoolState {
    pub pool: Pool,
    pub source: PoolSource,
    /// Null for pools of the configuration.
    pub created_at: Option<Timestamp>,
    pub updated_at: Option<Timestamp>,
    pub vms: PoolVms,
    /// Jobs that it takes and that have no runner yet.
    pub jobs_waiting: u32,
    /// Fault of the newest vm that failed or was refused.
    pub last_error: Option<Fault>,
}

#[derive(Clone)]
pub struct Settings {
    /// Pools of the configuration, validated, with unique names.
    pub configured: Arc<[Pool]>,
    pub queue_timeout_seconds: u32,
    /// Budgets of templates that do not define any.
    pub budgets: Budgets,
}

#[derive(Clone)]
pub struct Pools {
    ledger: Ledger,
    reader: Reader,
    catalog: Arc<Catalog>,
    drivers: Arc<DriverRegistry>,
    capacity: Capacity,
    faults: PoolFaults,
    clock: Clock,
    sources: Sources,
    settings: Settings,
}

impl Pools {
    pub fn new(parts: &Parts, settings: Settings) -> Self {
        let Parts { ledger, reader, catalog, drivers, capacity, pool_faults: faults, clock, sources, .. } =
            parts.clone();
        Self { ledger, reader, catalog, drivers, capacity, faults, clock, sources, settings }
    }

    pub async fn list(&self) -> Result<Vec<PoolState>> {
        let (vms, jobs) = (self.reader.vms_by_pool().await?, self.reader.jobs_waiting_by_pool().await?);
        let mut states = Vec::new();
        for (name, KnownPool { pool, source, stored }) in self.reader.known_pools(&self.settings.configured).await? {
            let vms = vms.get(&name).copied().unwrap_or_default();
            let waiting = jobs.get(&name).copied().unwrap_or_default();
            states.push(self.pool_state(pool, source, stored, vms, waiting).await?);
        }
        Ok(states)
    }

    pub async fn get(&self, name: &str) -> Result<PoolState> {
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
        let refused = self.faults.of(&pool.name);
        let failed = self.reader.newest_failed_of_pool(&pool.name).await?.and_then(|vm| {
            let outcome = vm.outcome.as_ref()?;
            let spoken = |detail: &String| format!("vm {}: {detail}", vm.spec.name);
            let code = outcome.code?;
            let detail = outcome.detail.as_ref().map_or_else(|| spoken(&code.title().to_owned()), spoken);
            // The outcome of a vm is set when its end begins; cleanup follows.
            Some(Fault { code, detail, at: vm.deleted_at().unwrap_or(vm.updated_at) })
        });
        let last_error = [refused, failed].into_iter().flatten().max_by_key(|fault| fault.at);
        let (created_at, updated_at) = (stored.as_ref().map(|s| s.created_at), stored.as_ref().map(|s| s.updated_at));
        Ok(PoolState { pool, source, created_at, updated_at, vms, jobs_waiting, last_error })
    }

    fn configured_pool(&self, name: &str) -> Option<&Pool> {
        self.settings.configured.iter().find(|pool| pool.name == name)
    }

    /// Creates or replaces the pool. Existing vms keep their settings. Returns whether it is new.
    pub async fn set(&self, pool: Pool) -> Result<bool> {
        self.own(&pool.name)?;
        pool.check()?;
        // Disabling a pool must not fail because its template is gone or too large now.
        if pool.enabled {
            self.pool_fits(&pool).await?;
        }
        let (name, template) = (pool.name.clone(), pool.template.clone());
        let new = self.ledger.put_pool(pool, self.clock.now()).await?;
        self.faults.clear(&name);
        tracing::info!(pool.name = name, template.name = template, new, "pool set");
        Ok(new)
    }

    /// Removes the pool: no job gets a vm from it any more; existing vms continue to their ends.
    pub async fn remove(&self, name: &str) -> Result<()> {
        self.own(name)?;
        if !self.ledger.remove_pool(name).await? {
            return Err(no_pool(name));
        }
        self.faults.clear(name);
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

    /// The kind of the pool's source, at which it can register runners.
    fn pool_source(&self, pool: &Pool) -> Result<SourceKind> {
        let name = &pool.job_source;
        let Some(source) = self.sources.get(name) else { return Err(no_source(name, "/job_source")) };
        if source.server.is_none() {
            let title = source.kind.title();
            return Err(Error::new(
                source.kind.not_configured(),
                format!(
                    "pools register runners, and this service has no credentials for {title}: set `[{}]` in mayfly.toml",
                    if name.is_github() { "github".to_owned() } else { format!("sources.{name}") }
                ),
            )
            .field("/scope", format!("needs credentials for {title}")));
        }
        Ok(source.kind)
    }

    /// Checks the pool against this host and the service's configuration.
    async fn pool_fits(&self, pool: &Pool) -> Result<()> {
        let kind = self.pool_source(pool)?;
        pool.runner().check_for(kind, "")?;
        let asked = TemplateOverrides {
            cpus: pool.cpus,
            memory_mib: pool.memory_mib,
            network: pool.network,
            budgets: pool.budgets.clone(),
            queue_seconds: self.settings.queue_timeout_seconds,
            limits: SizeLimits::default(),
        };
        let capacity = self.capacity;
        asked.budgets_until_resolved(&self.settings.budgets, &capacity)?;
        if pool.template.contains('/') {
            // An image is pulled when the first job needs it.
            return pool.template.parse::<Reference>().map(drop).map_err(|error: ReferenceError| {
                Error::new(Code::RequestInvalid, "the template is not an image reference")
                    .field("/template", error.to_string())
            });
        }
        let template = self.catalog.get(&pool.template).await.map_err(|error| match error.code {
            Code::TemplateNotFound => Error::new(Code::TemplateUnknown, error.detail)
                .field("/template", "see GET /templates for what is here, or name an image as host/namespace:tag"),
            _ => error,
        })?;
        let user = NetworkUser { runner: RunnerKind::of(kind), pool: Some(&pool.name) };
        let can = self.drivers.network_support(&template.driver);
        asked.resolve(&template, &self.settings.budgets, &capacity, user, &can).map(drop)
    }
}

pub fn no_pool(name: &str) -> Error {
    Error::new(Code::PoolNotFound, format!("no pool has the name {name:.80?}"))
}
