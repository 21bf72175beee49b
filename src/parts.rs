//! The parts of the layer below `admission`, `service` and `reconcile`, built once by `app`. Each service and each loop
//! takes from here what it needs, and nothing else.

use std::sync::Arc;

use crate::{
    domain::capacity::Capacity,
    drivers::{inspector::HostInspector, registry::DriverRegistry},
    platform::Clock,
    registry::{logins::Logins, s3::S3},
    sources::{Sources, github::runner_archives::RunnerArchives},
    store::{
        Ledger, Reader, Vault, guest_heartbeats::GuestHeartbeats, logs::Logs, pools::PoolFaults, tokens::TokenUses,
    },
    templates::{
        Catalog,
        pull::{ProgressBoard, Puller},
    },
};

/// Cheap to clone.
#[derive(Clone)]
pub struct Parts {
    pub ledger: Ledger,
    pub reader: Reader,
    pub vault: Arc<Vault>,
    pub token_uses: TokenUses,
    pub heartbeats: GuestHeartbeats,
    pub logs: Logs,
    pub pool_faults: PoolFaults,
    pub drivers: Arc<DriverRegistry>,
    pub host: HostInspector,
    pub capacity: Capacity,
    pub catalog: Arc<Catalog>,
    pub puller: Puller,
    pub pull_progress: ProgressBoard,
    pub logins: Logins,
    pub s3: S3,
    pub sources: Sources,
    pub runner_archives: RunnerArchives,
    pub clock: Clock,
}
