//! Intervals of requests about runners.

use std::time::Duration;

/// Intervals of requests to a CI server.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For a runner that is about to appear or disappear.
    pub soon: Duration,
    /// For a runner that is idle or busy.
    pub calm: Duration,
    /// After an unsuccessful request; doubles each time.
    pub first_retry: Duration,
    pub longest_retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            soon: Duration::from_secs(5),
            calm: Duration::from_secs(30),
            first_retry: Duration::from_secs(2),
            longest_retry: Duration::from_secs(60),
        }
    }
}

impl Pace {
    pub(in crate::reconcile) fn longer(&self, pause: Duration) -> Duration {
        (pause * 2).min(self.longest_retry)
    }
}
