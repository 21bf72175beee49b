//! Records of deleted vms are kept for a while and then forgotten, with everything that belongs to them.

use std::time::Duration;

use super::{KEEP_DELETED, prelude::*, token};
use mayfly::{
    domain::VmId,
    platform::Clock,
    store::logs::{LogSource, Logs},
};

/// A vm that lived and ended, and left a log.
async fn ended(host: &Host, key: &str) -> VmId {
    let created =
        host.services().admission.create(request("linux", job()), Some(key.to_owned()), &token()).await.unwrap();
    assert!(created.new);
    let id = created.vm.id();
    host.until_state(id, State::Deleted).await;
    Logs::new(host.at("logs")).append(id, LogSource::Job, b"it worked\n".to_vec()).await.unwrap();
    id
}

async fn assert_kept(host: &Host, id: VmId, key: &str) {
    let reader = host.reader();
    assert_eq!(reader.vm(id).await.unwrap().unwrap().state, State::Deleted);
    assert!(!reader.events(Some(id), 0, 100).await.unwrap().is_empty());
    assert!(host.at("logs").join(id.to_string()).join("job.log").exists());
    let again =
        host.services().admission.create(request("linux", job()), Some(key.to_owned()), &token()).await.unwrap();
    assert_eq!((again.vm.id(), again.new), (id, false));
}

#[tokio::test]
async fn records_are_forgotten_once_they_are_old_and_not_before() {
    let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let mut host = Host::with_clock(2, 0, clock.clone()).await;
    host.play_guests();
    let old = ended(&host, "old").await;
    clock.advance(KEEP_DELETED / 2);
    let young = ended(&host, "young").await;
    let strangers = host.at("logs").join("not-a-vm");
    std::fs::create_dir(&strangers).unwrap();
    std::fs::create_dir(host.at("logs").join(VmId::mint().to_string())).unwrap();

    // To the moment as old as records may become: everything is still there. Retention runs when a service starts.
    clock.advance(KEEP_DELETED / 2);
    host.restart().await;
    // The directory of a vm that has no record is what shows that it ran.
    let looked = async || std::fs::read_dir(host.at("logs")).unwrap().count() == 3;
    wait_until(looked).await;
    assert_kept(&host, old, "old").await;
    assert_kept(&host, young, "young").await;

    clock.advance(Duration::from_millis(1));
    host.restart().await;
    wait_until(async || !host.at("logs").join(old.to_string()).exists()).await;
    let reader = host.reader();
    assert_eq!(reader.vm(old).await.unwrap(), None);
    assert_eq!(reader.events(Some(old), 0, 100).await.unwrap(), vec![]);
    assert!(reader.events(None, 0, 1000).await.unwrap().iter().all(|e| e.vm_id == young));
    assert!(strangers.exists(), "what is not a vm's was not made here");
    assert_kept(&host, young, "young").await;

    // The key is free again, for whatever is asked with it.
    let mut other = request("linux", job());
    other.cpus = Some(2);
    let reused = host.services().admission.create(other, Some("old".to_owned()), &token()).await.unwrap();
    assert!(reused.new && reused.vm.id() != old);
    host.until_state(reused.vm.id(), State::Deleted).await;

    // Much later there is nothing to remember.
    clock.advance(KEEP_DELETED * 2);
    host.restart().await;
    wait_until(async || !host.at("logs").join(young.to_string()).exists()).await;
    let left = host.reader().events(None, 0, 1000).await.unwrap();
    assert_eq!(left, vec![], "all of them are old by now");
    host.assert_clean(&[]).await;
}

async fn wait_until(is_so: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + super::PATIENCE;
    while !is_so().await {
        assert!(tokio::time::Instant::now() < end, "it does not come about");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
