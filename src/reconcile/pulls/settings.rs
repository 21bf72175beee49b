use std::time::Duration;

use crate::domain::Budgets;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Pause before the second attempt; doubles each time.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// Budgets of templates whose image does not define any.
    pub budgets: Budgets,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_secs(5),
            longest_pause: Duration::from_secs(300),
            budgets: Budgets::default(),
        }
    }
}
