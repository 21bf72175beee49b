//! Builds the parts, the services and the loops from a setup. Production takes the setup from the configuration;
//! tests make their own and share the rest.

use std::{collections::BTreeMap, sync::Arc};

use tokio::task::JoinHandle;

use super::{error::StartError, store, templates::RegistryAccess};
use crate::{
    domain::{Budgets, Pool, capacity::Capacity},
    drivers::{inspector::HostInspector, registry::DriverRegistry},
    parts::Parts,
    platform::{
        clock::{Clock, ClockReading},
        data_dir::DataDir,
        database::Unchecked,
    },
    reconcile::{self, JobLoops, PullLoops, Reconciler},
    registry::{logins::Logins, s3::S3},
    service::{self, Services, StoredTemplateUsage},
    sources::{
        Sources,
        github::runner_archives::{RunnerArchive, RunnerArchives},
    },
    store::logs::Logs,
    templates::{self, Catalog, pull::Puller},
};

/// Logs of guests may use the space that is kept free for running vms, down to this part of it: they belong to running
/// vms, and each is small.
const LOGS_SHARE: u64 = 4;

/// The inputs of a service.
pub struct Setup {
    pub data: DataDir,
    pub clock: Clock,
    pub drivers: DriverRegistry,
    pub capacity: Capacity,
    /// Whether foreign instances count against the capacity.
    pub count_foreign: bool,
    /// Size of the file that keeps disk space for the database.
    pub database_reserve: u64,
    pub template_limits: templates::SpaceLimits,
    pub registries: RegistryAccess,
    pub sources: Sources,
    pub runner_archives: BTreeMap<String, RunnerArchive>,
    /// Budgets of templates that do not define any.
    pub budgets: Budgets,
    pub service: service::Settings,
    pub reconcile: reconcile::Settings,
}

impl Setup {
    /// Usual values, without any credentials.
    pub fn new(data: DataDir, drivers: DriverRegistry, capacity: Capacity) -> Setup {
        Setup {
            clock: Clock::steady(),
            drivers,
            capacity,
            count_foreign: true,
            database_reserve: 0,
            template_limits: templates::SpaceLimits::default(),
            registries: RegistryAccess::default(),
            sources: Sources::default(),
            runner_archives: BTreeMap::new(),
            budgets: Budgets::default(),
            service: service::Settings::default(),
            reconcile: reconcile::Settings::new(capacity, &data),
            data,
        }
    }
}

/// The service without its listeners. Nothing runs yet.
pub struct Built {
    pub parts: Parts,
    pub services: Services,
    pub reconciler: Reconciler,
    pub jobs: JobLoops,
    pub pulls: PullLoops,
    /// Ends once every part is dropped, the last write is on disk and the database is closed.
    pub store_closed: JoinHandle<()>,
    /// The rest of the database's check.
    pub unchecked: Option<Unchecked>,
}

pub async fn build(setup: Setup) -> Result<Built, StartError> {
    let Setup {
        data,
        clock,
        drivers,
        capacity,
        count_foreign,
        database_reserve,
        template_limits,
        registries,
        sources,
        runner_archives,
        budgets,
        mut service,
        mut reconcile,
    } = setup;
    let (vault, store) = store::open(&data, database_reserve).await?;
    // Continues the clock of the last run, before anything reads it: the loops find whether the system's clock was set
    // meanwhile.
    let last_step = store.reader.clock_at_last_step().await.unwrap_or_default();
    if let Some(earlier) = ClockReading::later(reconcile::last_beat(&reconcile.heartbeat), last_step) {
        clock.continue_from(&earlier);
    }
    let catalog = Catalog::open_with(data.templates(), template_limits)
        .map_err(|cause| StartError::Templates { dir: data.templates().display().to_string(), cause })?;
    catalog.set_template_usage(Arc::new(StoredTemplateUsage {
        reader: store.reader.clone(),
        ledger: store.ledger.clone(),
        clock: clock.clone(),
    }));
    let space = catalog.space().clone();
    let RegistryAccess { pull, credentials, users } = registries;
    let limits = pull.registry.limits.clone();
    let logins = Logins::new(data.path().to_owned(), pull.registry.clone(), users, credentials.clone());
    let drivers = Arc::new(drivers);
    let parts = Parts {
        ledger: store.ledger,
        reader: store.reader,
        vault: Arc::new(vault),
        token_uses: Default::default(),
        heartbeats: Default::default(),
        logs: Logs::new(data.logs())
            .with_clock(clock.clone())
            .with_space(space.keeping(template_limits.min_free_bytes / LOGS_SHARE)),
        pool_faults: Default::default(),
        capacity,
        host: HostInspector::new(drivers.clone(), capacity, count_foreign, clock.clone()),
        drivers,
        puller: Puller::new(catalog.clone(), pull, credentials),
        catalog: Arc::new(catalog),
        pull_progress: Default::default(),
        logins,
        s3: S3::new(data.s3(), limits).with_space(space.clone()),
        sources,
        runner_archives: RunnerArchives::new(data.runner_archives(), runner_archives).with_space(space),
        clock,
    };

    let pools: Arc<[Pool]> = service.pools.clone().into();
    reconcile.jobs.pools = pools;
    for of_part in [&mut service.vms.budgets, &mut reconcile.budgets] {
        *of_part = budgets.clone();
    }
    let services = Services::new(&parts, service, data.admin_token());
    let (vms, pulls) = (services.admission.clone(), services.pull_admission.clone());
    Ok(Built {
        reconciler: Reconciler::new(&parts, &reconcile),
        jobs: JobLoops::new(&parts, vms.clone(), reconcile.jobs),
        pulls: PullLoops::new(&parts, vms, pulls, reconcile.pulls),
        parts,
        services,
        store_closed: store.closed,
        unchecked: store.unchecked,
    })
}
