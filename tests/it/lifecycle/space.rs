//! A full disk is the host's fault and not the vm's.

use mayfly::templates::SpaceLimits;

use super::prelude::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_finds_the_disk_full_gives_its_slot_back_and_waits() {
    let mut host = Host::new(1, 0).await;
    host.play_guests();
    host.limits = SpaceLimits { min_free_bytes: u64::MAX, ..SpaceLimits::default() };
    host.restart().await;
    let id = host.create(request("linux", job())).await;
    let vm = host.until(id, |vm| vm.queue.as_ref().is_some_and(|q| q.reason == QueueReason::Host)).await;
    let fault = vm.last_fault.unwrap();
    assert_eq!((vm.failed_attempts, fault.code), (0, Code::HostFull));
    assert!(fault.detail.contains("the name linux points at it"), "{}", fault.detail);
    assert!(host.world.snapshot().instances.is_empty());

    // Room again: it is tried again by itself.
    host.limits = SpaceLimits::default();
    host.restart().await;
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed);
    host.assert_clean(&[id]).await;
}
