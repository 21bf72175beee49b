//! Limits transfer rates.
//!
//! A limit is one budget that is shared by all layers of all pulls of a class. A transfer that exceeds it does not
//! read from the network, so that TCP slows the sender down. The time limits of a connection apply only while data is
//! read.

use std::{fmt, num::NonZeroU32, sync::Arc};

use governor::{DefaultDirectRateLimiter, Quota};
use tokio_util::sync::CancellationToken;

/// The lowest limit: below it, registries give up connections before a piece has arrived.
pub const LEAST: u32 = 64 << 10;

/// The fraction of a second's bytes that may come at once after a pause.
const BURST_PART: u32 = 8;

/// Bytes per second, shared by all clones.
#[derive(Clone)]
pub struct BandwidthLimit {
    bucket: Arc<DefaultDirectRateLimiter>,
    burst: NonZeroU32,
    bytes_per_second: u32,
}

impl BandwidthLimit {
    /// `None` for 0, which means no limit. Lower values than `LEAST` count as that.
    pub fn of(bytes_per_second: u32) -> Option<BandwidthLimit> {
        if bytes_per_second == 0 {
            return None;
        }
        let rate = NonZeroU32::new(bytes_per_second.max(LEAST))?;
        let burst = NonZeroU32::new(rate.get() / BURST_PART)?;
        let bucket = Arc::new(DefaultDirectRateLimiter::direct(Quota::per_second(rate).allow_burst(burst)));
        Some(BandwidthLimit { bucket, burst, bytes_per_second: rate.get() })
    }

    /// Returns when this many more bytes are allowed.
    async fn allow(&self, bytes: usize) {
        let mut left = bytes;
        while let Some(part) = NonZeroU32::new(u32::try_from(left).unwrap_or(u32::MAX).min(self.burst.get())) {
            // Never more than the burst, so it always succeeds eventually.
            let _ = self.bucket.until_n_ready(part).await;
            left -= part.get() as usize;
        }
    }
}

impl fmt::Debug for BandwidthLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes per second", self.bytes_per_second)
    }
}

/// The limits of a host. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct BandwidthLimits {
    /// For all pulls together.
    pub all: Option<BandwidthLimit>,
    /// For background pulls, which also count for `all`.
    pub background: Option<BandwidthLimit>,
}

/// The limits of one pull. Clones belong to the same pull.
#[derive(Clone, Debug, Default)]
pub struct TransferPace {
    limits: BandwidthLimits,
    /// A vm or a person waits for it.
    urgent: CancellationToken,
}

impl TransferPace {
    /// A background pull, until it is told to hurry.
    pub fn background(limits: BandwidthLimits) -> TransferPace {
        TransferPace { limits, urgent: CancellationToken::new() }
    }

    /// For a pull that a vm or a person waits for.
    pub fn urgent(limits: BandwidthLimits) -> TransferPace {
        let pace = TransferPace::background(limits);
        pace.hurry();
        pace
    }

    /// From now on a vm or a person waits for it. Transfers that the background limit delays continue at once.
    pub fn hurry(&self) {
        self.urgent.cancel();
    }

    pub fn is_urgent(&self) -> bool {
        self.urgent.is_cancelled()
    }

    /// Returns when this many more bytes are allowed.
    pub async fn allow(&self, bytes: usize) {
        if let Some(background) = &self.limits.background
            && !self.is_urgent()
        {
            tokio::select! {
                () = background.allow(bytes) => {}
                () = self.urgent.cancelled() => {}
            }
        }
        if let Some(all) = &self.limits.all {
            all.allow(bytes).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const RATE: u32 = 800 << 10;

    fn limits(all: u32, background: u32) -> BandwidthLimits {
        BandwidthLimits { all: BandwidthLimit::of(all), background: BandwidthLimit::of(background) }
    }

    async fn take(pace: &TransferPace, pieces: usize, size: usize) -> Duration {
        let start = Instant::now();
        for _ in 0..pieces {
            pace.allow(size).await;
        }
        start.elapsed()
    }

    /// The shortest time for this many bytes: the burst is less than an eighth of a second.
    fn least(bytes: usize) -> Duration {
        Duration::from_secs_f64(bytes as f64 / f64::from(RATE) - 0.13)
    }

    #[tokio::test]
    async fn what_is_limited_takes_its_time_whatever_the_pieces() {
        for size in [1 << 10, 100 << 10, 400 << 10] {
            let pieces = (400 << 10) / size;
            for pace in [TransferPace::background(limits(0, RATE)), TransferPace::urgent(limits(RATE, 0))] {
                let took = take(&pace, pieces, size).await;
                assert!(took >= least(400 << 10), "{took:?} for {pieces} of {size}");
            }
        }
    }

    #[tokio::test]
    async fn two_pulls_share_a_limit() {
        let limits = limits(0, RATE);
        let (one, two) = (TransferPace::background(limits.clone()), TransferPace::background(limits));
        let start = Instant::now();
        tokio::join!(take(&one, 20, 10 << 10), take(&two, 20, 10 << 10));
        assert!(start.elapsed() >= least(400 << 10), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn background_transfers_do_not_delay_foreground_ones() {
        let limits = limits(0, RATE);
        let background = TransferPace::background(limits.clone());
        let slow = tokio::spawn(async move { take(&background, 1, 10 << 20).await });
        let urgent = TransferPace::urgent(limits);
        // Ten times what the limit allows in that time.
        let took = take(&urgent, 1000, 100 << 10).await;
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert!(!slow.is_finished());
        slow.abort();
    }

    #[tokio::test]
    async fn a_hurried_pull_continues_at_once() {
        let pace = TransferPace::background(limits(0, LEAST));
        let hurried = pace.clone();
        let slow = tokio::spawn(async move { take(&pace, 3, 1 << 30).await });
        tokio::task::yield_now().await;
        assert!(!slow.is_finished());
        hurried.hurry();
        let took = tokio::time::timeout(Duration::from_secs(5), slow).await.expect("it goes on").unwrap();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }

    #[test]
    fn no_limit_is_none_and_none_is_too_small() {
        assert!(BandwidthLimit::of(0).is_none());
        assert_eq!(format!("{:?}", BandwidthLimit::of(1).unwrap()), "65536 bytes per second");
        assert_eq!(format!("{:?}", BandwidthLimit::of(u32::MAX).unwrap()), "4294967295 bytes per second");
    }
}
