//! Measures the progress of a pull.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::{domain::pull::FetchProgress, platform::clock, registry::oci::Digest};

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// Size of the image, once it is known.
    pub image: Option<Digest>,
    /// Bytes to download. Existing content is in neither number.
    pub bytes_done: u64,
    /// Zero until it is known what has to be downloaded.
    pub bytes_total: u64,
    /// Chunks of the disk, from any source.
    pub chunks_done: usize,
    pub chunks_total: usize,
    /// Current bytes per second.
    pub rate: u64,
    pub eta: Option<Duration>,
}

impl From<&PullProgress> for FetchProgress {
    fn from(p: &PullProgress) -> Self {
        FetchProgress {
            bytes_done: p.bytes_done,
            bytes_total: p.bytes_total,
            chunks_done: p.chunks_done as u64,
            chunks_total: p.chunks_total as u64,
        }
    }
}

/// Interval of rate measurements, over the last half minute.
const INTERVAL: Duration = Duration::from_millis(500);
const MEMORY: f64 = 10.0;

#[derive(Clone)]
pub(in crate::templates) struct Meter {
    to: watch::Sender<PullProgress>,
    since: Arc<Mutex<RateWindow>>,
}

struct RateWindow {
    began: Instant,
    bytes: u64,
    rate: Option<f64>,
}

impl Meter {
    pub fn new(to: watch::Sender<PullProgress>) -> Meter {
        Meter { to, since: Arc::new(Mutex::new(RateWindow { began: clock::monotonic(), bytes: 0, rate: None })) }
    }

    pub fn planned(&self, bytes_total: u64, chunks_done: usize, chunks_total: usize) {
        self.to.send_modify(|p| {
            *p = PullProgress { image: p.image, bytes_total, chunks_done, chunks_total, ..PullProgress::default() };
        });
    }

    pub fn received(&self, bytes: u64) {
        let rate = self.rate(bytes, clock::monotonic());
        self.to.send_modify(|p| {
            p.bytes_done += bytes;
            if let Some(rate) = rate {
                p.rate = rate as u64;
                let left = p.bytes_total.saturating_sub(p.bytes_done) as f64;
                p.eta = (rate >= 1.0).then(|| Duration::from_secs((left / rate).ceil() as u64));
            }
        });
    }

    /// Received data was wrong and has to be downloaded again.
    pub fn lost(&self, bytes: u64) {
        self.to.send_modify(|p| p.bytes_done = p.bytes_done.saturating_sub(bytes));
    }

    /// A chunk that was expected to be here has to be downloaded.
    pub fn also(&self, bytes: u64) {
        self.to.send_modify(|p| p.bytes_total += bytes);
    }

    /// A chunk that was expected to be downloaded need not be.
    pub fn spared(&self, bytes: u64) {
        self.to.send_modify(|p| p.bytes_total = p.bytes_total.saturating_sub(bytes));
    }

    pub fn chunk_done(&self) {
        self.to.send_modify(|p| p.chunks_done += 1);
    }

    fn rate(&self, bytes: u64, now: Instant) -> Option<f64> {
        let mut window = self.since.lock();
        window.bytes += bytes;
        let passed = now.duration_since(window.began);
        if passed < INTERVAL {
            return None;
        }
        let measured = window.bytes as f64 / passed.as_secs_f64();
        let forget = 1.0 - (-passed.as_secs_f64() / MEMORY).exp();
        let rate = window.rate.map_or(measured, |old| old + forget * (measured - old));
        *window = RateWindow { began: now, bytes: 0, rate: Some(rate) };
        Some(rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_what_comes() {
        let meter = Meter::new(watch::Sender::new(PullProgress::default()));
        let start = Instant::now();
        assert_eq!(meter.rate(1000, start), None);
        let rate = meter.rate(1_000_000, start + Duration::from_secs(1)).unwrap();
        assert!((900_000.0..=1_010_000.0).contains(&rate), "{rate}");
        let mut later = rate;
        for second in 2..60 {
            later = meter.rate(100_000, start + Duration::from_secs(second)).unwrap();
        }
        assert!((100_000.0..110_000.0).contains(&later), "{later}");
    }

    #[test]
    fn what_is_lost_is_not_done() {
        let meter = Meter::new(watch::Sender::new(PullProgress::default()));
        meter.planned(100, 1, 3);
        meter.received(60);
        meter.lost(60);
        meter.received(100);
        meter.chunk_done();
        let progress = meter.to.borrow().clone();
        assert_eq!((progress.bytes_done, progress.bytes_total), (100, 100));
        assert_eq!((progress.chunks_done, progress.chunks_total), (2, 3));
    }
}
