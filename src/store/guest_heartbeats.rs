//! When the wrapper of each live vm last reported. In memory only: a report every few seconds is no change of a vm, and
//! a restart gives every guest its whole time again.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{domain::VmId, platform::clock};

/// How often silence is checked, at most.
const LONGEST_STEP: Duration = Duration::from_secs(5);
/// A check that comes this late shows that the service itself was suspended or starved.
const LATE: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct GuestHeartbeats {
    last: Arc<Mutex<HashMap<VmId, Instant>>>,
    started: Instant,
}

impl Default for GuestHeartbeats {
    fn default() -> Self {
        Self { last: Arc::default(), started: clock::monotonic() }
    }
}

impl GuestHeartbeats {
    pub fn note(&self, vm: VmId) {
        self.last.lock().insert(vm, clock::monotonic());
    }

    pub fn forget(&self, vm: VmId) {
        self.last.lock().remove(&vm);
    }

    fn last(&self, vm: VmId) -> Instant {
        self.last.lock().get(&vm).copied().unwrap_or(self.started)
    }

    /// Returns when nothing was reported for `limit`. Time in which this process did not run does not count.
    pub async fn silence(&self, vm: VmId, limit: Duration) {
        let step = (limit / 4).clamp(Duration::from_millis(10), LONGEST_STEP);
        let mut since = self.last(vm);
        while clock::elapsed(since) < limit {
            let begun = clock::monotonic();
            tokio::time::sleep(step.min(limit - clock::elapsed(since).min(limit))).await;
            since = since.max(self.last(vm));
            if clock::elapsed(begun) > step + LATE {
                since = clock::monotonic();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn silence_is_counted_from_the_last_report_and_from_the_start_of_the_service() {
        // Long enough for a busy machine to report three times within it.
        let limit = Duration::from_millis(1500);
        let heartbeats = GuestHeartbeats::default();
        let (talks, silent) = (VmId::mint(), VmId::mint());
        let begun = Instant::now();
        let talking = async {
            for _ in 0..6 {
                tokio::time::sleep(limit / 3).await;
                heartbeats.note(talks);
            }
            std::future::pending::<()>().await;
        };
        let both = async {
            heartbeats.silence(silent, limit).await;
            assert!(begun.elapsed() < limit * 2, "{:?}", begun.elapsed());
            heartbeats.silence(talks, limit).await;
        };
        tokio::select! {
            () = both => {}
            () = talking => {}
        }
        assert!(begun.elapsed() >= limit * 3, "{:?}", begun.elapsed());
        heartbeats.forget(talks);
        assert!(heartbeats.last.lock().is_empty());
    }

    #[tokio::test]
    async fn time_in_which_the_service_was_suspended_does_not_count() {
        let limit = Duration::from_secs(2);
        let heartbeats = GuestHeartbeats::default();
        let silence = heartbeats.silence(VmId::mint(), limit);
        tokio::pin!(silence);
        assert!(tokio::time::timeout(Duration::from_millis(10), &mut silence).await.is_err());
        // Nothing runs in this process, as while it is stopped.
        std::thread::sleep(LATE + limit);
        let begun = Instant::now();
        silence.await;
        assert!(begun.elapsed() >= limit - Duration::from_millis(50), "{:?}", begun.elapsed());
    }
}
