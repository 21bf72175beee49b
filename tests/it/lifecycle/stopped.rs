//! Guests that their hypervisor stops while it lives on.

use std::time::{Duration, Instant};

use mayfly::{
    domain::VmId,
    drivers::Observation,
    service::guests::GuestEvent,
    store::logs::{LogSource, Logs},
};

use super::prelude::*;

const STOPS: [(GoneCause, Code); 4] = [
    (GoneCause::HypervisorError, Code::HypervisorFailed),
    (GoneCause::GuestPanic, Code::GuestPanicked),
    (GoneCause::GuestWatchdog, Code::GuestWatchdogExpired),
    (GoneCause::HostPause, Code::InstancePaused),
];

/// Far less than any budget.
const SOON: Duration = Duration::from_secs(10);

/// A vm whose guest runs and has its runner.
async fn running(host: &Host) -> VmId {
    let id = host.create(request("linux", RunnerRequest::None)).await;
    host.until_state(id, State::Booting).await;
    host.world.until(|world| world.running() > 0).await;
    host.services()
        .guests
        .report(id, GuestEvent::GuestConfigured { attempt: None, separate_users: None })
        .await
        .unwrap();
    host.until_state(id, State::Running).await;
    id
}

fn said(host: &Host, id: VmId) -> String {
    std::fs::read_to_string(Logs::new(host.at("logs")).path(id, LogSource::Hypervisor)).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_stopped_while_it_boots_is_replaced_by_a_fresh_one() {
    let host = Host::new(4, 2).await;
    for (cause, code) in STOPS {
        let id = host.create(request("linux", job())).await;
        host.until_state(id, State::Booting).await;
        host.world.until(|world| world.running() > 0).await;
        // The next one is simulated.
        host.play_guests();
        let stopped = Instant::now();
        assert!(host.world.halt(&id.instance(), cause), "{cause:?}");
        let vm = host.until(id, |vm| vm.failed_attempts == 1).await;
        assert!(stopped.elapsed() < SOON, "{cause:?} after {:?}", stopped.elapsed());
        let fault = vm.last_fault.unwrap();
        assert_eq!(fault.code, code, "{fault:?}");
        assert!(fault.detail.ends_with(cause.describe()), "{fault:?}");
        let end = host.until_state(id, State::Deleted).await;
        assert_eq!((end.attempt, end.outcome.unwrap().result), (2, OutcomeResult::Completed), "{cause:?}");
        host.world.on_boot(|_| {});
        host.assert_clean(&[id]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_stopped_under_its_runner_is_lost_with_its_cause() {
    let mut host = Host::new(4, 2).await;
    for restarts in [false, true] {
        for (cause, code) in STOPS {
            let id = running(&host).await;
            if restarts {
                // It is stopped while nobody looks.
                host.crash().await;
            }
            assert!(host.world.halt(&id.instance(), cause));
            if restarts {
                host.start().await;
            }
            let stopped = Instant::now();
            let end = host.until_state(id, State::Deleted).await;
            assert!(stopped.elapsed() < SOON, "{cause:?} after {:?}", stopped.elapsed());
            let outcome = end.outcome.unwrap();
            assert_eq!((outcome.result, outcome.code), (OutcomeResult::Lost, Some(code)), "{cause:?}");
            assert_eq!(outcome.detail.as_deref(), Some(cause.describe()));
            assert_eq!(end.end_signal, Some(EndSignal::InstanceGone));
            host.assert_clean(&[id]).await;
        }
    }
}

/// Before it has a runner, nothing is lost by starting again where there is room, and the vm is not at fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_while_a_guest_boots_is_the_hosts_fault() {
    let host = Host::new(4, 2).await;
    let id = host.create(request("linux", job())).await;
    host.until_state(id, State::Booting).await;
    host.world.until(|world| world.running() > 0).await;
    host.play_guests();
    assert!(host.world.halt(&id.instance(), GoneCause::HostDiskFull));
    let vm =
        host.until(id, |vm| vm.queue.as_ref().is_some_and(|q| q.reason == QueueReason::Host) || vm.attempt > 1).await;
    assert_eq!((vm.failed_attempts, vm.last_fault.unwrap().code), (0, Code::HostFull));
    let end = host.until_state(id, State::Deleted).await;
    assert_eq!((end.failed_attempts, end.outcome.unwrap().result), (0, OutcomeResult::Completed));
    host.assert_clean(&[id]).await;
}

/// A guest with a runner is paused, and goes on when there is room; its log and its record say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_a_runner_pauses_it_until_there_is_room() {
    let mut host = Host::new(4, 2).await;
    host.disk_full = Duration::from_secs(3600);
    host.restart().await;
    let id = running(&host).await;
    host.world.disk_full(true);
    assert!(host.world.halt(&id.instance(), GoneCause::HostDiskFull));
    let vm = host.until(id, |vm| vm.last_fault.is_some()).await;
    assert_eq!((vm.state, vm.last_fault.unwrap().code), (State::Running, Code::HostFull));
    host.world.disk_full(false);
    host.world
        .until(|world| !matches!(world.instances.get(id.instance().as_str()), Some(Observation::Halted { .. })))
        .await;
    assert!(said(&host, id).contains("the host's disk is full: the guest is paused"), "{}", said(&host, id));
    let end = std::time::Instant::now() + SOON;
    while !said(&host, id).contains("the guest goes on") {
        assert!(std::time::Instant::now() < end, "{}", said(&host, id));
        tokio::task::yield_now().await;
    }
    assert_eq!(host.vm(id).await.state, State::Running);
    host.delete(id, true).await;
    host.until_state(id, State::Deleted).await;
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_stays_full_ends_the_vm_in_bounded_time() {
    let host = Host::new(4, 2).await;
    let id = running(&host).await;
    host.world.disk_full(true);
    assert!(host.world.halt(&id.instance(), GoneCause::HostDiskFull));
    let end = host.until_state(id, State::Deleted).await;
    let outcome = end.outcome.unwrap();
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Lost, Some(Code::HostFull)), "{outcome:?}");
    assert!(said(&host, id).contains("the guest is given up"), "{}", said(&host, id));
    host.assert_clean(&[id]).await;
}
