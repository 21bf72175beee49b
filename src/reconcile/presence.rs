//! Records how long the service was down or suspended, and steps of the host's clock.
//!
//! While the service is down, guests cannot deliver reports, so that time is added to the budgets within which they
//! have to report. The reading of the clocks is written to a file every second, without fsync, because a crash of the
//! host ends its guests, too. A start reads the file and applies the gap to each vm as [`Event::ServiceAway`], before
//! any budget is checked. A suspended or starved process finds its own gaps in the same way.
//!
//! When the host's clock was set or the host slept, every deadline is moved by that step, and then the service's clock
//! follows ([`Ledger::clock_stepped`]). A start continues the clock from the file, so steps during the downtime are
//! found in the same way.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::try_join_all;
use jiff::{SignedDuration, Timestamp};
use tokio::{sync::watch, time::Instant};

use crate::{
    domain::{Event, State, Vm},
    drivers::inspector::HostInspector,
    parts::Parts,
    platform::{
        Clock,
        clock::{self, ClockReading},
        files,
    },
    store::{Expect, Ledger, Reader, StoreError},
};

/// Shorter gaps are not recorded.
const SHORTEST: Duration = Duration::from_secs(1);
/// A process whose heartbeat is this late was suspended or starved.
const LATE: Duration = Duration::from_secs(5);

/// A smaller difference between the service's clock and the system's is not corrected.
const SMALLEST_DRIFT: SignedDuration = SignedDuration::from_millis(50);
/// A smaller difference is drift of the system's clock: the service's clock follows it, and no deadline is moved.
const SMALLEST_STEP: SignedDuration = SignedDuration::from_secs(1);

/// When the last complete heartbeat of this process began.
#[derive(Clone, Debug, Default)]
pub(super) struct Presence(watch::Sender<Option<Instant>>);

impl Presence {
    /// Returns after a heartbeat that begins from now on. It proves that the service was not suspended until now, and
    /// that the clock was not set.
    pub async fn confirmed(&self) {
        let now = clock::monotonic();
        let mut beats = self.0.subscribe();
        // Cannot fail: `self` owns the sender.
        let _ = beats.wait_for(|began| began.is_some_and(|began| began >= now)).await;
    }
}

/// Writes the time to a file, and records gaps.
#[derive(Clone)]
pub(super) struct ServiceHeartbeat {
    ledger: Ledger,
    reader: Reader,
    presence: Presence,
    clock: Clock,
    host: HostInspector,
    path: PathBuf,
    every: Duration,
}

impl ServiceHeartbeat {
    pub fn new(parts: &Parts, presence: Presence, path: PathBuf, every: Duration) -> Self {
        let Parts { ledger, reader, clock, host, .. } = parts.clone();
        Self { ledger, reader, presence, clock, host, path, every }
    }

    /// Records how long the service was down, and whether the clock was set meanwhile. Has to run before any vm is
    /// driven.
    pub async fn note_absence(&self) {
        if let Some(last) = last_beat(&self.path) {
            let until = self.clock.now();
            while let Err(error) = self.note_away(last.wall, until).await {
                tracing::error!(error = %error, "cannot record how long the service was down; retrying");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        while let Err(error) = self.follow_clock().await {
            tracing::error!(error = %error, "cannot record that the host's clock was set; retrying");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Finds steps of the host's clock.
    async fn follow_clock(&self) -> Result<(), StoreError> {
        let step = self.clock.behind();
        if step.abs() < SMALLEST_STEP {
            if step.abs() >= SMALLEST_DRIFT {
                self.clock.follow(step);
            }
            return Ok(());
        }
        self.ledger.clock_stepped(&self.clock, step).await?;
        self.host.update(|view| view.clock_stepped(step));
        tracing::warn!(
            seconds = step.as_secs_f64(),
            "the host's clock was set, or the host slept; all deadlines were moved by that, so every budget has as much left as before"
        );
        Ok(())
    }

    pub async fn beat_forever(self) {
        let mut file = None;
        let (mut at, mut beat) = (self.clock.now(), clock::monotonic());
        loop {
            let began = clock::monotonic();
            let now = self.clock.now();
            // In tests the clock may have been set forward, so the gap is at most what the monotonic clock shows.
            let gap = now.duration_since(at).min(clock::elapsed(beat).try_into().unwrap_or_default());
            if gap > LATE.try_into().unwrap_or_default()
                && let Err(error) = self.note_away(now - gap, now).await
            {
                tracing::error!(error = %error, "cannot record how long the service was suspended; retrying");
            } else if let Err(error) = self.follow_clock().await {
                tracing::error!(error = %error, "cannot record that the host's clock was set; retrying");
                (at, beat) = (now, began);
            } else {
                (at, beat) = (self.clock.now(), clock::monotonic());
                if let Err(error) = write(&mut file, &self.path, &self.clock.reading()) {
                    tracing::warn!(error = %error, path = %self.path.display(), "cannot write the heartbeat; if the service ends now, its downtime counts against budgets");
                }
                self.presence.0.send_replace(Some(began));
            }
            tokio::time::sleep(self.every).await;
        }
    }

    async fn note_away(&self, since: Timestamp, until: Timestamp) -> Result<(), StoreError> {
        let waiting = self.reader.live_vms().await?.into_iter().filter_map(|vm| {
            let away = away(&vm, since, until)?;
            tracing::info!(vm.id = %vm.id(), away_ms = away, "the service was down or suspended; the budgets that end with a report are extended by that duration");
            let event = Event::ServiceAway { milliseconds: away };
            Some(self.ledger.apply(vm.id(), Expect::Anything, event, until))
        });
        try_join_all(waiting).await.map(drop)
    }
}

/// For how long the service did not listen to the guest of this vm. Each event of the vm shows that the service was
/// running at that time.
fn away(vm: &Vm, since: Timestamp, until: Timestamp) -> Option<i64> {
    let guest =
        matches!(vm.state, State::Cloning | State::Booting | State::Configuring | State::Running | State::Draining);
    let away = until.as_millisecond() - since.max(vm.updated_at).as_millisecond();
    (guest && away >= SHORTEST.as_millis() as i64).then_some(away)
}

/// The reading of the clocks when a service last wrote that it runs.
pub fn last_beat(path: &Path) -> Option<ClockReading> {
    std::fs::read_to_string(path).ok()?.parse().ok()
}

/// Overwrites in place with a constant length, so that a process that dies meanwhile leaves the old or the new reading.
fn write(file: &mut Option<File>, path: &Path, now: &ClockReading) -> io::Result<()> {
    let file = match file {
        Some(file) => file,
        None => file.insert(files::private().write(true).create(true).truncate(false).open(path)?),
    };
    file.write_all_at(format!("{now}\n").as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heartbeat");
        assert_eq!(last_beat(&path), None);
        let mut file = None;
        for ms in [5, 1_800_000_000_123, 7] {
            let now = Clock::manual(Timestamp::from_millisecond(ms).unwrap()).reading();
            write(&mut file, &path, &now).unwrap();
            assert_eq!(last_beat(&path), Some(now));
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(last_beat(&path), None);
    }
}
