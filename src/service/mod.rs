//! The verbs that change things. Each checks, writes one transaction to the ledger and answers; what follows from it is done
//! by `reconcile`, which reads the ledger. The two never call each other.

use std::sync::Arc;

use crate::{
    domain::{Budgets, Pool},
    platform::Clock,
    registry::{logins::Logins, s3::S3},
    sources::github::{self, runner_archives::RunnerArchives},
    store::{Ledger, Reader, Vault, logs::Logs},
    templates::{Catalog, layouts::Tools, pull::Puller},
};

pub mod guests;
pub mod hosts;
pub mod jobs;
pub mod layouts;
pub mod objects;
pub mod pools;
pub mod pulls;
pub mod registries;
pub mod templates;
pub mod tokens;
pub mod versions;
pub mod vms;
pub mod watches;
pub mod webhooks;

pub use hosts::HostInspector;

/// Limits and defaults of the verbs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many vms may wait at once.
    pub max_queued: u32,
    /// Wait for a slot when the request does not say, in seconds.
    pub queue_timeout_seconds: u32,
    /// Budgets of a template that does not say otherwise.
    pub budgets: Budgets,
    pub pulls: pulls::Settings,
    pub jobs: jobs::Settings,
    /// Pools of the configuration: checked, and each name once.
    pub pools: Vec<Pool>,
    /// RunnerArchives that conversions of templates need.
    pub tools: Tools,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_queued: 1000,
            queue_timeout_seconds: 3600,
            budgets: Budgets::default(),
            pulls: Default::default(),
            jobs: Default::default(),
            pools: Vec::new(),
            tools: Tools::default(),
        }
    }
}

#[derive(Clone)]
pub struct Service {
    pub(crate) ledger: Ledger,
    pub(crate) reader: Reader,
    pub(crate) vault: Arc<Vault>,
    pub(crate) logs: Logs,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) host: HostInspector,
    pub(crate) clock: Clock,
    pub(crate) settings: Settings,
    /// The drivers that this service was started with, by name.
    pub(crate) drivers: Arc<crate::drivers::registry::Registry>,
    pub(crate) puller: Puller,
    pub(crate) pulls: Arc<pulls::Board>,
    pub(crate) logins: Logins,
    pub(crate) s3: S3,
    /// Who we are to GitHub, where somebody said.
    pub(crate) github: Option<Arc<github::GitHubClient>>,
    pub(crate) programs: RunnerArchives,
    pub(crate) pool_board: Arc<pools::Board>,
    pub(crate) job_board: Arc<jobs::Board>,
}

#[expect(clippy::too_many_arguments, reason = "called once, where everything is wired")]
impl Service {
    pub fn new(
        ledger: Ledger,
        reader: Reader,
        vault: Arc<Vault>,
        logs: Logs,
        catalog: Arc<Catalog>,
        drivers: Arc<crate::drivers::registry::Registry>,
        puller: Puller,
        logins: Logins,
        s3: S3,
        github: Option<Arc<github::GitHubClient>>,
        programs: RunnerArchives,
        host: HostInspector,
        clock: Clock,
        settings: Settings,
    ) -> Self {
        let vms = versions::Vms { reader: reader.clone(), ledger: ledger.clone(), clock: clock.clone() };
        catalog.set_template_usage(Arc::new(vms));
        let pulls = Arc::default();
        let pool_board = Arc::default();
        Self {
            ledger,
            reader,
            vault,
            logs,
            catalog,
            host,
            clock,
            settings,
            drivers,
            puller,
            pulls,
            logins,
            s3,
            github,
            programs,
            pool_board,
            job_board: Arc::default(),
        }
    }
}

impl Service {
    pub fn reader(&self) -> &Reader {
        &self.reader
    }

    pub fn changes(&self) -> &crate::store::Changes {
        self.ledger.changes()
    }

    pub fn default_budgets(&self) -> &Budgets {
        &self.settings.budgets
    }

    pub fn now(&self) -> jiff::Timestamp {
        self.clock.now()
    }
}
