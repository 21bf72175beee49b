//! Settings of the loops of pulls.

use std::time::Duration;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Pause before the second attempt; doubles each time.
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self { first_pause: Duration::from_secs(5), longest_pause: Duration::from_secs(300) }
    }
}
