//! Whether the service was here. Guests come up and runners work while it is away, and cannot say so: that time costs none of
//! the budgets that they have for saying it.
//!
//! The time is written to a file every second; it needs no fsync, because a crash of the host ends its guests, too. A start
//! reads it and notes in each vm's log how long nobody listened ([`Event::ServiceAway`]), before any budget is looked at. A
//! process that stood still (stopped, starved) finds its own gap in the same way.

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

/// What is shorter is not worth an event.
const SHORTEST: Duration = Duration::from_secs(1);
/// A process that is this late with a beat stood still.
const LATE: Duration = Duration::from_secs(5);

/// Beats of this process so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Presence(watch::Sender<u64>);

impl Presence {
    /// Returns when it is certain that the service was here until now: with the next beat.
    pub async fn confirmed(&self) {
        let mut beats = self.0.subscribe();
        // The sender is in `self`.
        let _ = beats.changed().await;
    }
}

/// Writes the time to a file, and notes gaps in it.
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

    /// Notes how long the service was away. Before any vm is driven.
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
            // The wall clock may have been set, so it is believed as far as the other one agrees.
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
            tracing::info!(vm.id = %vm.id(), away_ms = away, "the service was down or suspended; the vm's budgets are extended by that time");
            let event = Event::ServiceAway { milliseconds: away };
            Some(self.ledger.apply(vm.id(), Expect::Anything, event, until))
        });
        try_join_all(waiting).await.map(drop)
    }
}

/// How long nobody listened to this vm's guest. Each of its events says that somebody was there at that moment.
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

/// In place and always of the same length: a process that dies while it writes leaves the one or the other.
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
