//! Records how long the service was down or suspended. During that time guests cannot deliver reports, so it is added
//! to the budgets within which they have to report.
//!
//! The time is written to a file every second, without fsync, because a crash of the host ends its guests, too. A
//! start reads the file and applies the gap to each vm as [`Event::ServiceAway`], before any budget is checked. A
//! suspended or starved process finds its own gaps in the same way.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::future::try_join_all;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::{
    domain::{Event, State, Vm},
    parts::Parts,
    platform::{Clock, clock, files},
    store::{Expect, Ledger, Reader, StoreError},
};

/// Shorter gaps are not recorded.
const SHORTEST: Duration = Duration::from_secs(1);
/// A process whose heartbeat is this late was suspended or starved.
const LATE: Duration = Duration::from_secs(5);

/// Number of heartbeats of this process.
#[derive(Clone, Debug, Default)]
pub(super) struct Presence(watch::Sender<u64>);

impl Presence {
    /// Returns with the next heartbeat, which proves that the service was not suspended until now.
    pub async fn confirmed(&self) {
        let mut beats = self.0.subscribe();
        // Cannot fail: `self` owns the sender.
        let _ = beats.changed().await;
    }
}

/// Writes the time to a file, and records gaps.
#[derive(Clone)]
pub(super) struct Heartbeat {
    ledger: Ledger,
    reader: Reader,
    presence: Presence,
    clock: Clock,
    path: PathBuf,
    every: Duration,
}

impl Heartbeat {
    pub fn new(parts: &Parts, presence: Presence, path: PathBuf, every: Duration) -> Self {
        let Parts { ledger, reader, clock, .. } = parts.clone();
        Self { ledger, reader, presence, clock, path, every }
    }

    /// Records how long the service was down. Has to run before any vm is driven.
    pub async fn note_absence(&self) {
        let until = self.clock.now();
        let Some(since) = last_beat(&self.path) else { return };
        while let Err(error) = self.note_away(since, until).await {
            tracing::error!(error = %error, "cannot record how long the service was down; retrying");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    pub async fn beat_forever(self) {
        let mut file = None;
        let (mut at, mut beat) = (self.clock.now(), clock::monotonic());
        loop {
            let now = self.clock.now();
            // The wall clock may have been set, so the gap is at most what the monotonic clock shows.
            let gap = now.duration_since(at).min(clock::elapsed(beat).try_into().unwrap_or_default());
            if gap > LATE.try_into().unwrap_or_default()
                && let Err(error) = self.note_away(now - gap, now).await
            {
                tracing::error!(error = %error, "cannot record how long the service was suspended; retrying");
            } else {
                (at, beat) = (now, clock::monotonic());
                if let Err(error) = write(&mut file, &self.path, now) {
                    tracing::warn!(error = %error, path = %self.path.display(), "cannot write the heartbeat; if the service ends now, its downtime counts against budgets");
                }
                self.presence.0.send_modify(|beats| *beats += 1);
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

fn last_beat(path: &Path) -> Option<Timestamp> {
    let text = std::fs::read_to_string(path).ok()?;
    Timestamp::from_millisecond(text.trim().parse().ok()?).ok()
}

/// Overwrites in place with a constant length, so that a process that dies meanwhile leaves the old or the new time.
fn write(file: &mut Option<File>, path: &Path, now: Timestamp) -> io::Result<()> {
    let file = match file {
        Some(file) => file,
        None => file.insert(files::private().write(true).create(true).truncate(false).open(path)?),
    };
    file.write_all_at(format!("{:020}\n", now.as_millisecond()).as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heartbeat");
        assert_eq!(last_beat(&path), None);
        let at = |ms| Timestamp::from_millisecond(ms).unwrap();
        let mut file = None;
        for ms in [5, 1_800_000_000_123, 7] {
            write(&mut file, &path, at(ms)).unwrap();
            assert_eq!(last_beat(&path), Some(at(ms)));
        }
        std::fs::write(&path, "").unwrap();
        assert_eq!(last_beat(&path), None);
    }
}
