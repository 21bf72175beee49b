//! How often a failed request is retried, and with which pauses.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use jiff::{Timestamp, fmt::rfc2822};
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// A limit of attempts, and the pauses between them.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Attempts in a row without progress; at least one is made.
    pub attempts: usize,
    pub first_pause: Duration,
    pub longest_pause: Duration,
}

impl Retry {
    /// The same pauses, with fewer attempts.
    pub fn at_most(self, attempts: usize) -> Self {
        Self { attempts: self.attempts.min(attempts), ..self }
    }

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

/// The pause that a server asks for in `Retry-After`, in seconds: a number, or a date. A date in the past is none.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<u32> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than a number has are a long time, too.
        return Some(text.parse().unwrap_or(u32::MAX));
    }
    let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let left = at.duration_since(now);
    // Not before that time: a part of a second is a whole one.
    let seconds = left.as_secs() + i64::from(left.subsec_nanos() > 0);
    Some(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        let read = |text: &str| {
            let headers = [(RETRY_AFTER, text.parse().unwrap())].into_iter().collect();
            retry_after(&headers, now)
        };
        assert_eq!(read("120"), Some(120));
        assert_eq!(read(" 3600 "), Some(3600));
        assert_eq!(read("99999999999999999999999"), Some(u32::MAX));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(37));
        assert_eq!(read("Sun, 06 Nov 1994 08:48:37 GMT"), Some(0));
        for wrong in ["soon", "-5", "+5", "1.5", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }

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
