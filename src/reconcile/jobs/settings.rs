//! Settings of the loops of jobs.

use std::{sync::Arc, time::Duration};

use crate::domain::Pool;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Pools of the configuration, validated, with unique names.
    pub pools: Arc<[Pool]>,
    /// How long ended jobs and deliveries are stored. A late update must not bring a job back.
    pub keep: Duration,
    /// Pause before another vm is created for a job whose vm failed; doubles each time, up to `longest_pause`.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// How long a busy runner may have one of the jobs that are known as queued: the report which job it is may be
    /// late.
    pub report_late: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pools: Arc::new([]),
            keep: Duration::from_secs(7 * 24 * 3600),
            first_pause: Duration::from_secs(15),
            longest_pause: Duration::from_secs(600),
            report_late: Duration::from_secs(10),
        }
    }
}
