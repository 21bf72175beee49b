use std::{sync::Arc, time::Duration};

use crate::domain::Pool;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Pools of the configuration: checked, and each name once.
    pub pools: Arc<[Pool]>,
    /// GitHub's webhook has a secret, so deliveries can be expected.
    pub webhooks: bool,
    /// How often GitHub is asked for what webhooks lost. `None`: never.
    pub poll_every: Option<Duration>,
    /// How long jobs that are over, and deliveries, are remembered. A late update must not bring a job back.
    pub keep: Duration,
    /// Before another vm is made for a job whose vm came to nothing; doubles each time, up to `longest_pause`.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            pools: Arc::new([]),
            webhooks: false,
            poll_every: Some(Duration::from_secs(60)),
            keep: Duration::from_secs(7 * 24 * 3600),
            first_pause: Duration::from_secs(15),
            longest_pause: Duration::from_secs(600),
        }
    }
}
