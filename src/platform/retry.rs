//! How often a failed request is retried, and with which pauses.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};

/// A limit of attempts, and the pauses between them.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Attempts in a row without progress; at least one is made.
    pub attempts: usize,
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Retry {
    /// The pauses between attempts, with jitter, so that hosts that lost one server together do not come back together.
    pub fn pauses(&self) -> ExponentialBackoff {
        ExponentialBuilder::default()
            .with_min_delay(self.first_pause)
            .with_max_delay(self.longest_pause)
            .with_max_times(self.attempts.saturating_sub(1))
            .with_jitter()
            .build()
    }
}

/// The pause times a random factor from this range.
pub fn jittered(pause: Duration, factors: std::ops::Range<f64>) -> Duration {
    pause.mul_f64(factors.start + fastrand::f64() * (factors.end - factors.start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let retry =
            Retry { attempts: 4, first_pause: Duration::from_millis(100), longest_pause: Duration::from_millis(300) };
        let pauses: Vec<Duration> = retry.pauses().collect();
        assert_eq!(pauses.len(), 3);
        assert!(pauses.iter().all(|p| (100..=600).contains(&p.as_millis())), "{pauses:?}");
        assert_eq!(Retry { attempts: 0, ..retry }.pauses().count(), 0);
    }

    #[test]
    fn jitter_stays_in_its_range() {
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(Duration::from_secs(10), 0.9..1.1)).collect();
        assert!(pauses.iter().all(|p| (9_000..=11_000).contains(&p.as_millis())), "{pauses:?}");
        assert!(pauses.iter().any(|p| *p != pauses[0]));
    }
}
