//! Settings that the loops of vms share, derived from the configuration by `app`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{jobs, pulls, runners::Pace};
use crate::{
    domain::{AllowedDestination, Budgets, capacity::Capacity},
    guest::HostEnvironment,
    platform::data_dir::DataDir,
};

#[derive(Clone, Debug)]
pub struct Settings {
    pub capacity: Capacity,
    /// Unix socket of the guest API, for drivers whose guests have a gateway.
    pub guest_socket: PathBuf,
    /// Driver → base URL of the guest API as its guests reach it.
    pub guest_urls: BTreeMap<String, String>,
    /// What guests in the mode `internet` may reach besides public addresses.
    pub allow: Vec<AllowedDestination>,
    /// Driver → what its guests that reach more than the guest API get from this host.
    pub host_environments: BTreeMap<String, HostEnvironment>,
    /// Pause before a failed attempt is repeated; doubles each time, up to a minute.
    pub retry_backoff: Duration,
    /// How long a guest with a runner may stay paused because of a full disk.
    pub disk_full: Duration,
    pub sweep_every: Duration,
    /// The heartbeat file, and the interval at which it is written.
    pub heartbeat: PathBuf,
    pub beat_every: Duration,
    pub keep_deleted: Duration,
    /// Budgets of templates that do not define any.
    pub budgets: Budgets,
    /// Intervals of requests about runners to CI servers.
    pub runners: Pace,
    pub jobs: jobs::Settings,
    pub pulls: pulls::Settings,
}

impl Settings {
    /// Usual values. No driver has a base URL of the guest API yet.
    pub fn new(capacity: Capacity, data: &DataDir) -> Settings {
        Settings {
            capacity,
            guest_socket: data.guest_socket(),
            guest_urls: BTreeMap::new(),
            allow: Vec::new(),
            host_environments: BTreeMap::new(),
            retry_backoff: Duration::from_secs(2),
            disk_full: Duration::from_secs(300),
            sweep_every: Duration::from_secs(60),
            heartbeat: data.heartbeat(),
            beat_every: Duration::from_secs(1),
            keep_deleted: Duration::from_secs(7 * 24 * 3600),
            budgets: Budgets::default(),
            runners: Pace::default(),
            jobs: jobs::Settings::default(),
            pulls: pulls::Settings::default(),
        }
    }
}
