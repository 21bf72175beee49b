//! Pulls under a limit take their time, share it, and hold nobody back who has none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use mayfly::{
    registry::{BandwidthLimit, BandwidthLimits, RegistryOptions, credentials::Chain},
    templates::{
        Catalog,
        progress::PullProgress,
        pull::{PullRequest, Puller, Settings},
    },
};
use tokio::sync::watch;

use crate::support::{
    registry::Registry,
    tart_image::{Content, Encoding, TartImage},
};

const RATE: u32 = 1 << 20;

struct Host {
    _dir: tempfile::TempDir,
    puller: Puller,
    address: String,
}

impl Host {
    fn new(registry: &Registry, limits: BandwidthLimits) -> Host {
        let dir = tempfile::tempdir().unwrap();
        let catalog = Catalog::open(dir.path().join("templates")).unwrap();
        let options = RegistryOptions {
            ca_file: Some(registry.authority.file()),
            // Far shorter than what is waited for under the limit.
            idle_timeout: Duration::from_millis(700),
            limits,
            ..RegistryOptions::default()
        };
        let settings = Settings { registry: options, ..Settings::default() };
        let puller = Puller::new(catalog, settings, Arc::new(Chain::new(Vec::new())));
        Host { _dir: dir, puller, address: registry.address.clone() }
    }

    fn pull(&self, repository: &str, background: bool) -> tokio::task::JoinHandle<(Duration, u64)> {
        let puller = self.puller.clone();
        let reference = format!("{}/acme/{repository}:1", self.address).parse().unwrap();
        let request = PullRequest { background, ..PullRequest::new(reference, repository) };
        tokio::spawn(async move {
            let progress = watch::Sender::new(PullProgress::default());
            let start = Instant::now();
            puller.pull(&request, &progress).await.unwrap();
            let bytes = progress.borrow().bytes_done;
            (start.elapsed(), bytes)
        })
    }
}

/// Noise in four layers, `bytes` together.
async fn image(registry: &Registry, repository: &str, bytes: usize) {
    let seed = repository.bytes().map(u64::from).sum::<u64>() * 100;
    let chunks: Vec<Content> = (0..4).map(|n| Content::Noise(seed + n, bytes / 4)).collect();
    TartImage::new(&chunks, Encoding::Linked).push(registry, &format!("acme/{repository}"), "1").await;
}

/// A limit lets an eighth of a second's bytes through at once.
fn least(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / f64::from(RATE) - 0.13)
}

fn limits(all: u32, background: u32) -> BandwidthLimits {
    BandwidthLimits { all: BandwidthLimit::of(all), background: BandwidthLimit::of(background) }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_enforced_and_shared_and_affect_no_other_transfer() {
    let registry = Registry::open().await;
    for (repository, bytes) in [("one", 3 << 20), ("two", 1 << 20), ("three", 1 << 20), ("four", 2 << 20)] {
        image(&registry, repository, bytes).await;
    }
    let host = Host::new(&registry, limits(0, RATE));

    // Longer than the connection's time limit, four layers at a time.
    let (took, bytes) = host.pull("one", true).await.unwrap();
    assert!(bytes >= 3 << 20 && took >= least(bytes), "{took:?} for {bytes} bytes");

    // Two share one limit, and a third one, which is waited for, has none.
    let start = Instant::now();
    let (two, three) = (host.pull("two", true), host.pull("three", true));
    let (took, bytes) = host.pull("four", false).await.unwrap();
    assert!(took < least(bytes), "{took:?} for {bytes} bytes that somebody waits for");
    let together = two.await.unwrap().1 + three.await.unwrap().1;
    assert!(start.elapsed() >= least(together), "{:?} for {together} bytes", start.elapsed());

    // A limit for all is one for those that somebody waits for, too.
    let limited = Host::new(&registry, limits(RATE, 0));
    let start = Instant::now();
    let (two, three) = (limited.pull("two", false), limited.pull("three", true));
    let together = two.await.unwrap().1 + three.await.unwrap().1;
    assert!(start.elapsed() >= least(together), "{:?} for {together} bytes", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_pull_hurries_once_a_vm_waits_for_the_same_image() {
    let registry = Registry::open().await;
    image(&registry, "one", 8 << 20).await;
    // Two minutes, if it were left alone.
    let host = Host::new(&registry, limits(0, 64 << 10));
    let slow = host.pull("one", true);
    let asked = || registry.log().contains("/blobs/");
    tokio::time::timeout(Duration::from_secs(10), async {
        while !asked() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it begins");
    assert!(!slow.is_finished());
    let (took, _) = host.pull("one", false).await.unwrap();
    assert!(took < Duration::from_secs(60), "{took:?}");
    let (took, _) = slow.await.unwrap();
    assert!(took < Duration::from_secs(60), "{took:?}");
}
