//! The only place that reads a clock.
//!
//! Code whose behaviour depends on the time of day has a [`Clock`], which tests replace. [`now`] is for times that are only recorded
//! or shown. Deadlines and durations use [`monotonic`], which does not change when the system's time is set.
#![expect(clippy::disallowed_methods, reason = "all other code reads the clocks through this module")]

use std::time::{Duration, SystemTime};

use jiff::{SignedDuration, Timestamp, Unit};
use tokio::{sync::watch, time::Instant};

/// The time of day.
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The clock that only goes forward, for deadlines and durations.
pub fn monotonic() -> Instant {
    Instant::now()
}

/// The time since `since`.
pub fn elapsed(since: Instant) -> Duration {
    since.elapsed()
}

/// How old a file with this time is. Zero when the time lies in the future.
pub fn age(of: SystemTime) -> Duration {
    of.elapsed().unwrap_or_default()
}

/// A source of the time of day that tests can replace.
#[derive(Clone, Debug)]
pub struct Clock(ClockSource);

#[derive(Clone, Debug)]
enum ClockSource {
    System,
    /// The system's clock plus this offset.
    Ahead(watch::Sender<SignedDuration>),
    Manual(watch::Sender<Timestamp>),
}

impl Clock {
    pub fn system() -> Self {
        Self(ClockSource::System)
    }

    /// A clock that stands still until `advance` or `shift`.
    pub fn manual(start: Timestamp) -> Self {
        Self(ClockSource::Manual(watch::Sender::new(start)))
    }

    /// A clock that goes like the system's, and that `advance` and `shift` set.
    pub fn adjustable() -> Self {
        Self(ClockSource::Ahead(watch::Sender::new(SignedDuration::ZERO)))
    }

    /// To the millisecond: what the database keeps, so that a replayed log gives the very same row.
    pub fn now(&self) -> Timestamp {
        let now = match &self.0 {
            ClockSource::System => now(),
            ClockSource::Ahead(by) => now() + *by.borrow(),
            ClockSource::Manual(at) => *at.borrow(),
        };
        now.round(jiff::TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Trunc))
            .expect("truncating to milliseconds stays in range")
    }

    pub fn advance(&self, by: Duration) {
        self.shift(by.try_into().expect("tests advance by less than the range of a timestamp"));
    }

    /// Sets the clock forward or back.
    pub fn shift(&self, by: SignedDuration) {
        match &self.0 {
            ClockSource::System => unreachable!("the system's clock cannot be set"),
            ClockSource::Ahead(ahead) => ahead.send_modify(|ahead| *ahead += by),
            ClockSource::Manual(at) => at.send_modify(|at| *at += by),
        }
    }

    /// Returns at `at`, at once if that has passed.
    pub async fn sleep_until(&self, at: Timestamp) {
        match &self.0 {
            ClockSource::System => self.sleep_by_timer(at).await,
            ClockSource::Ahead(ahead) => {
                let mut changes = ahead.subscribe();
                loop {
                    tokio::select! {
                        () = self.sleep_by_timer(at) => return,
                        // The sender lives in `self`, so it cannot be gone.
                        _ = changes.changed() => {}
                    }
                }
            }
            ClockSource::Manual(now) => {
                let _ = now.subscribe().wait_for(|now| *now >= at).await;
            }
        }
    }

    async fn sleep_by_timer(&self, at: Timestamp) {
        loop {
            let left = at.duration_since(self.now());
            if !left.is_positive() {
                return;
            }
            let left = Duration::try_from(left).unwrap_or_default();
            // The system's clock may be set meanwhile: it is read again at least once a minute.
            tokio::time::sleep(left.min(Duration::from_secs(60)).max(Duration::from_millis(1))).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_adjusted_clock_wakes_sleeping_tasks() {
        let clock = Clock::adjustable();
        let before = clock.now();
        let sleeper = tokio::spawn({
            let clock = clock.clone();
            async move { clock.sleep_until(before + SignedDuration::from_hours(1)).await }
        });
        tokio::task::yield_now().await;
        assert!(!sleeper.is_finished());
        clock.advance(Duration::from_secs(3600));
        sleeper.await.unwrap();
        clock.shift(SignedDuration::from_hours(-2));
        assert!(clock.now() < before);
    }

    #[tokio::test]
    async fn a_manual_clock_stands_still() {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        assert_eq!(clock.now(), Timestamp::UNIX_EPOCH);
        clock.advance(Duration::from_secs(5));
        clock.sleep_until(Timestamp::from_second(5).unwrap()).await;
        assert_eq!(clock.now(), Timestamp::from_second(5).unwrap());
    }
}
