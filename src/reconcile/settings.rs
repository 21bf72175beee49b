use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use super::{github::Pace, jobs, pulls};
use crate::{
    domain::{Budgets, capacity::Capacity},
    platform::data_dir::DataDir,
};

#[derive(Clone, Debug)]
pub struct Settings {
    pub capacity: Capacity,
    /// Unix socket of the guest API, where a driver relays to it.
    pub guest_socket: PathBuf,
    /// The program that relays standard input and output to that socket; the path is appended.
    pub relay: Vec<String>,
    /// Driver → base address of the guest API as its guests see it.
    pub guest_urls: BTreeMap<String, String>,
    /// Guests reach the guest API and nothing else.
    pub isolated: bool,
    /// First wait before a failed attempt is repeated; doubles each time, up to a minute.
    pub retry_backoff: Duration,
    /// How long a guest with a runner may stay paused for a full disk before it is given up.
    pub disk_full: Duration,
    pub sweep_every: Duration,
    /// The file that says when the service was there last, and how often it is written.
    pub heartbeat: PathBuf,
    pub beat_every: Duration,
    pub keep_deleted: Duration,
    /// Of templates that do not say otherwise.
    pub budgets: Budgets,
    /// How often GitHub is asked about a runner.
    pub github: Pace,
    pub runner: RunnerSettings,
    pub jobs: jobs::Settings,
    pub pulls: pulls::Settings,
}

impl Settings {
    /// With usual values. No guest finds its way to the guest API yet.
    pub fn new(capacity: Capacity, data: &DataDir) -> Settings {
        Settings {
            capacity,
            guest_socket: data.guest_socket(),
            relay: Vec::new(),
            guest_urls: BTreeMap::new(),
            isolated: true,
            retry_backoff: Duration::from_secs(2),
            disk_full: Duration::from_secs(300),
            sweep_every: Duration::from_secs(60),
            heartbeat: data.heartbeat(),
            beat_every: Duration::from_secs(1),
            keep_deleted: Duration::from_secs(7 * 24 * 3600),
            budgets: Budgets::default(),
            github: Pace::default(),
            runner: RunnerSettings::default(),
            jobs: jobs::Settings::default(),
            pulls: pulls::Settings::default(),
        }
    }
}

/// GitHub's runner in the guests.
#[derive(Clone, Debug, Default)]
pub struct RunnerSettings {
    /// Where people use GitHub.
    pub github_web: String,
    /// `None`: in the usual places.
    pub directory: Option<String>,
    pub minimum_version: String,
}
