//! The only place that reads a clock.
//!
//! Code whose behaviour depends on the time of day has a [`Clock`], which tests replace. [`now`] is for times that are
//! only recorded or shown. Deadlines and durations use [`monotonic`], which does not change when the system's time is
//! set.
//!
//! The service's clock shows the time of day, but only the passing of time moves it. When the system's clock is set, or
//! the host slept, it goes on undisturbed until it is told to follow ([`Clock::follow`]), after the stored deadlines
//! were moved by the same amount. So no step of the system's clock spends or prolongs a deadline.
#![expect(clippy::disallowed_methods, reason = "all other code reads the clocks through this module")]

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

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

/// What the host's clocks showed at one moment. Readings of one boot can be compared with each other, also after a
/// restart of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClockReading {
    pub wall: Timestamp,
    /// Time since some moment of this boot. It is never set. On Linux it stands still while the host sleeps.
    pub uptime: Duration,
    /// Identifies the boot. Empty on systems that have no such identifier.
    pub boot: String,
}

impl ClockReading {
    /// The later one of what the heartbeat and the last step left.
    pub fn later(heartbeat: Option<ClockReading>, step: Option<ClockReading>) -> Option<ClockReading> {
        match (heartbeat, step) {
            (Some(heartbeat), Some(step)) if step.boot == heartbeat.boot && step.uptime > heartbeat.uptime => {
                Some(step)
            }
            (Some(heartbeat), _) => Some(heartbeat),
            // Without a heartbeat it is not known how long ago that was.
            (None, _) => None,
        }
    }

    /// The time between two readings. If the host was started again in between, only the time of day shows it.
    fn since(&self, earlier: &ClockReading) -> SignedDuration {
        let same_boot = self.boot == earlier.boot && self.uptime >= earlier.uptime;
        if same_boot {
            signed(self.uptime - earlier.uptime)
        } else {
            self.wall.duration_since(earlier.wall).max(SignedDuration::ZERO)
        }
    }
}

/// Of constant length, so that a file that is overwritten in place has the old or the new one.
impl fmt::Display for ClockReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:020} {:020} {:<36}", self.wall.as_millisecond(), self.uptime.as_millis(), self.boot)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("not the reading of a clock")]
pub struct UnparsableReading;

impl FromStr for ClockReading {
    type Err = UnparsableReading;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split_whitespace();
        let mut number = || words.next().ok_or(UnparsableReading)?.parse::<i64>().map_err(|_| UnparsableReading);
        let wall = Timestamp::from_millisecond(number()?).map_err(|_| UnparsableReading)?;
        // Earlier versions wrote the time of day only: then the boot counts as another one.
        let uptime = number().ok().and_then(|ms| u64::try_from(ms).ok()).map_or(Duration::MAX, Duration::from_millis);
        Ok(Self { wall, uptime, boot: words.next().unwrap_or_default().to_owned() })
    }
}

fn signed(duration: Duration) -> SignedDuration {
    duration.try_into().unwrap_or(SignedDuration::MAX)
}

fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}

fn boot() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// A source of the time of day that tests can replace.
#[derive(Clone, Debug)]
pub struct Clock {
    source: ClockSource,
    scale: watch::Sender<Scale>,
}

#[derive(Clone, Copy, Debug)]
enum ClockSource {
    /// Shows what the system's clock shows.
    System,
    /// Started with the system's clock, and moved by the passing of time only.
    Steady { wall: Timestamp, start: Instant },
    /// Stands still.
    Manual(Timestamp),
}

#[derive(Clone, Copy, Debug, Default)]
struct Scale {
    /// The steps of the system's clock that this clock has followed.
    followed: SignedDuration,
    /// In tests: time that passed.
    passed: SignedDuration,
    /// In tests: steps of the system's clock.
    set: SignedDuration,
}

impl Clock {
    fn new(source: ClockSource) -> Self {
        Self { source, scale: watch::Sender::new(Scale::default()) }
    }

    /// For what is compared with times of other machines. It steps with the system's clock.
    pub fn system() -> Self {
        Self::new(ClockSource::System)
    }

    /// The clock of a service: see the module.
    pub fn steady() -> Self {
        Self::new(ClockSource::Steady { wall: now(), start: monotonic() })
    }

    /// A clock that stands still until `advance` or `shift`.
    pub fn manual(start: Timestamp) -> Self {
        Self::new(ClockSource::Manual(start))
    }

    /// A clock that goes like the system's, and that `advance` and `shift` set.
    pub fn adjustable() -> Self {
        Self::system()
    }

    /// To the millisecond: what the database keeps, so that a replayed log gives the very same row.
    pub fn now(&self) -> Timestamp {
        let scale = *self.scale.borrow();
        let now = match self.source {
            ClockSource::System => now() + scale.passed,
            ClockSource::Steady { wall, start } => wall + signed(elapsed(start)) + scale.passed + scale.followed,
            ClockSource::Manual(wall) => wall + scale.passed + scale.followed,
        };
        now.round(jiff::TimestampRound::new().smallest(Unit::Millisecond).mode(jiff::RoundMode::Trunc))
            .expect("truncating to milliseconds stays in range")
    }

    /// By how much the system's clock is ahead of this one: it was set, or the host slept.
    pub fn behind(&self) -> SignedDuration {
        let scale = *self.scale.borrow();
        match self.source {
            ClockSource::System => SignedDuration::ZERO,
            ClockSource::Steady { .. } => {
                let before = self.now();
                let system = now() + scale.passed + scale.set;
                // This thread may have waited between the readings: only what lies outside of them is a difference.
                let after = self.now();
                let ahead = system.duration_since(after).max(SignedDuration::ZERO);
                let late = system.duration_since(before).min(SignedDuration::ZERO);
                SignedDuration::from_millis(i64::try_from((ahead + late).as_millis()).unwrap_or_default())
            }
            ClockSource::Manual(_) => scale.set - scale.followed,
        }
    }

    /// Moves this clock by a step of the system's clock.
    pub fn follow(&self, by: SignedDuration) {
        self.scale.send_modify(|scale| scale.followed += by);
    }

    /// Continues a clock of an earlier run of the service, which showed `wall` at that reading.
    pub fn continue_from(&self, earlier: &ClockReading) {
        if let ClockSource::Steady { .. } = self.source {
            let shows = earlier.wall + self.reading().since(earlier);
            self.follow(shows.duration_since(self.now()));
        }
    }

    /// What this clock shows, and the host's uptime.
    pub fn reading(&self) -> ClockReading {
        self.reading_after(SignedDuration::ZERO)
    }

    /// The reading once this clock has followed this step.
    pub fn reading_after(&self, step: SignedDuration) -> ClockReading {
        ClockReading { wall: self.now() + step, uptime: self.uptime(), boot: boot() }
    }

    /// Time since some moment of this boot. A step of the system's clock does not change it.
    pub fn uptime(&self) -> Duration {
        let passed = self.scale.borrow().passed;
        let uptime = match self.source {
            ClockSource::System | ClockSource::Steady { .. } => signed(uptime()) + passed,
            ClockSource::Manual(_) => passed,
        };
        Duration::try_from(uptime).unwrap_or_default()
    }

    pub fn advance(&self, by: Duration) {
        self.shift(by.try_into().expect("tests advance by less than the range of a timestamp"));
    }

    /// In tests: changes what the clock shows, as if that time had passed.
    pub fn shift(&self, by: SignedDuration) {
        self.scale.send_modify(|scale| scale.passed += by);
    }

    /// In tests: sets the system's clock forward or back. This clock does not follow by itself.
    pub fn set_system(&self, by: SignedDuration) {
        self.scale.send_modify(|scale| scale.set += by);
    }

    /// Returns at `at`, at once if that has passed. After a step that the clock follows, `at` has to be read again.
    pub async fn sleep_until(&self, at: Timestamp) {
        let mut changes = self.scale.subscribe();
        loop {
            changes.mark_unchanged();
            let left = at.duration_since(self.now());
            if !left.is_positive() {
                return;
            }
            let left = Duration::try_from(left).unwrap_or_default();
            let timer = async {
                match self.source {
                    // The system's clock may be set meanwhile: it is read again at least once a minute.
                    ClockSource::System | ClockSource::Steady { .. } => {
                        tokio::time::sleep(left.min(Duration::from_secs(60)).max(Duration::from_millis(1))).await;
                    }
                    ClockSource::Manual(_) => std::future::pending().await,
                }
            };
            tokio::select! {
                () = timer => {}
                // The sender lives in `self`, so it cannot be gone.
                _ = changes.changed() => {}
            }
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

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    #[tokio::test]
    async fn a_step_of_the_systems_clock_is_seen_when_the_clock_follows_it() {
        for step in [HOUR, -HOUR] {
            let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
            let (begin, at) = (clock.now(), clock.now() + SignedDuration::from_secs(60));
            let sleeper = tokio::spawn({
                let clock = clock.clone();
                async move { clock.sleep_until(at).await }
            });
            tokio::task::yield_now().await;
            clock.set_system(step);
            assert_eq!((clock.now(), clock.behind()), (begin, step));
            tokio::task::yield_now().await;
            assert!(!sleeper.is_finished(), "{step}");
            clock.follow(step);
            assert_eq!((clock.now(), clock.behind()), (begin + step, SignedDuration::ZERO));
            clock.advance(Duration::from_secs(60) + Duration::try_from(-step).unwrap_or_default());
            tokio::time::timeout(Duration::from_secs(5), sleeper).await.expect("it sleeps on").unwrap();
        }
    }

    #[test]
    fn a_steady_clock_goes_on_where_the_last_one_stood() {
        let near = |clock: &Clock, expected: SignedDuration| {
            let off = clock.behind() - expected;
            assert!(off.abs() < SignedDuration::from_secs(5), "{} is not {expected}", clock.behind());
        };
        near(&Clock::steady(), SignedDuration::ZERO);
        let now = Clock::steady().reading();
        // As if the system's clock had been set by this since the last run, a minute ago.
        for step in [HOUR, -HOUR] {
            let uptime = now.uptime.saturating_sub(Duration::from_secs(60));
            let passed = signed(now.uptime - uptime);
            let clock = Clock::steady();
            clock.continue_from(&ClockReading { wall: now.wall - step - passed, uptime, boot: now.boot.clone() });
            near(&clock, step);
            clock.follow(step);
            near(&clock, SignedDuration::ZERO);
        }
        // The host was started again: the time of day is all that is known, but no time has passed backwards.
        for (wall, behind) in [(now.wall - HOUR, SignedDuration::ZERO), (now.wall + HOUR, -HOUR)] {
            let clock = Clock::steady();
            clock.continue_from(&ClockReading { wall, uptime: Duration::from_secs(1), boot: "another".to_owned() });
            near(&clock, behind);
        }
    }

    #[test]
    fn a_reading_is_read_as_it_was_written() {
        let wall = Timestamp::from_millisecond(1_800_000_000_123).unwrap();
        let uptime = Duration::from_millis(77_001);
        for boot in ["", "f5a1c8d2-0b5e-4a0d-9a35-0d7c2f3a9b11"] {
            let reading = ClockReading { wall, uptime, boot: boot.to_owned() };
            assert_eq!(format!("{reading}\n").parse::<ClockReading>().unwrap(), reading);
            assert_eq!(reading.to_string().len(), 78);
        }
        let earlier: ClockReading = "00000001800000000123\n".parse().unwrap();
        assert_eq!((earlier.wall, earlier.uptime), (wall, Duration::MAX));
        assert!("".parse::<ClockReading>().is_err());
    }
}
