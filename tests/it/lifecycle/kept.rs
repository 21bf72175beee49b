//! Failed vms whose guest is kept for debugging: how long, what ends that, and what a restart and a clock that is set do to it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mayfly::{
    domain::{
        Budget, BudgetsPatch, GuestRole, QueueReason, Vm, VmId, VmRequest, token::Caller, vm_request::KeepOnFailure,
    },
    drivers::Observation,
    platform::Clock,
    service::guests::GuestEvent,
};

use super::{
    away::{boots, heartbeat},
    prelude::*,
    token,
};

/// A vm that is kept for this long if it fails.
fn keeps(seconds: u32) -> VmRequest {
    let budgets = BudgetsPatch { keep_on_failure_seconds: Some(seconds), ..BudgetsPatch::default() };
    VmRequest { budgets, ..request("linux", job()) }
}

/// Its guest runs, and its job has ended with this exit code.
async fn ended(host: &Host, request: VmRequest, exit_code: i32) -> VmId {
    let id = host.create(request).await;
    boots(host, id).await;
    for report in [
        GuestEvent::GuestConfigured { attempt: Some(1), separate_users: None },
        GuestEvent::JobStarted {},
        GuestEvent::RunnerFinished { exit_code },
    ] {
        host.services().guests.report(id, report).await.unwrap();
    }
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_whose_job_failed_is_kept_and_holds_its_slot_until_it_is_deleted() {
    let host = Host::new(1, 0).await;
    let id = ended(&host, keeps(600), 3).await;
    let kept = host.until_state(id, State::Kept).await;
    let outcome = kept.outcome.clone().unwrap();
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Completed, Some(Code::JobFailed)));
    assert_eq!(kept.deadline(), Some((Budget::KeepOnFailure, kept.entered_at + SignedDuration::from_secs(600))));
    assert_eq!(host.world.snapshot().instances.len(), 1);

    // The next vm waits for the slot, and is told why.
    let next = host.create(request("linux", job())).await;
    let waiting = host.until_state(next, State::Queued).await;
    assert_eq!(host.services().vms.queue_place(&waiting).await.unwrap().kept_slots, 1);
    let mut other = waiting.clone();
    other.queue.as_mut().unwrap().reason = QueueReason::Host;
    assert_eq!(host.services().vms.queue_place(&other).await.unwrap().kept_slots, 0);
    let status = host.services().hosts.status().await.unwrap();
    assert_eq!(status.kept.iter().map(Vm::id).collect::<Vec<_>>(), [id]);

    // Late words of the guest change nothing, and neither does the hook's DELETE.
    host.services().guests.report(id, GuestEvent::RunnerFinished { exit_code: 0 }).await.unwrap();
    let guest = Caller::Guest(id, GuestRole::Job);
    host.services().vms.end(id, &guest, false).await.unwrap();
    let still = host.vm(id).await;
    assert_eq!((still.state, still.job_exit_code), (State::Kept, Some(3)));

    // An admin's DELETE ends it at once, without `force`.
    host.delete(id, false).await;
    let end = host.until_state(id, State::Deleted).await;
    assert_eq!((end.outcome, end.end_signal), (Some(outcome), Some(EndSignal::RunnerFinished)));
    host.until(next, |vm| vm.state != State::Queued).await;
    host.delete(next, true).await;
    host.until_state(next, State::Deleted).await;
    host.assert_clean(&[id, next]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_failure_is_kept() {
    let host = Host::new(4, 0).await;
    let succeeded = ended(&host, keeps(600), 0).await;
    let not_asked = ended(&host, keeps(0), 3).await;
    // Its end was requested.
    let cancelled = host.create(keeps(600)).await;
    boots(&host, cancelled).await;
    host.delete(cancelled, true).await;
    // There is no guest to look at.
    let lost = host.create(keeps(600)).await;
    boots(&host, lost).await;
    host.services()
        .guests
        .report(lost, GuestEvent::GuestConfigured { attempt: Some(1), separate_users: None })
        .await
        .unwrap();
    host.world.end(&host.vm(lost).await.instance(), GoneCause::GuestPanic);
    let all = [succeeded, not_asked, cancelled, lost];
    for id in all {
        let vm = host.until_state(id, State::Deleted).await;
        assert!(vm.timeline.iter().all(|entry| entry.state != State::Kept), "{vm:#?}");
    }
    host.assert_clean(&all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_be_configured_is_kept_after_its_last_attempt() {
    let host = Host::new(1, 0).await;
    let budgets = BudgetsPatch { max_attempts: Some(2), ..keeps(600).budgets };
    let id = host.create(VmRequest { budgets, ..request("linux", job()) }).await;
    for attempt in [1, 2] {
        let vm = host.until(id, |vm| vm.state == State::Booting && vm.attempt == attempt).await;
        let name = vm.instance();
        let runs = |seen: &Observation| matches!(seen, Observation::Running { .. });
        host.world.until(|world| world.instances.get(name.as_str()).is_some_and(runs)).await;
        let failed =
            GuestEvent::GuestFailed { attempt, detail: "no disk".into(), is_final: false, check_failed: false };
        host.services().guests.report(id, failed).await.unwrap();
    }
    let vm = host.until_state(id, State::Kept).await;
    assert_eq!((vm.attempt, vm.end_signal), (2, Some(EndSignal::GivenUp)));
    // If the guest ends by itself, there is nothing left to keep.
    assert!(host.world.end(&vm.instance(), GoneCause::GuestPowerOff));
    let end = host.until_state(id, State::Deleted).await;
    assert_eq!(end.end_signal, Some(EndSignal::GivenUp));
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_for_which_a_vm_is_kept_survives_restarts_and_a_clock_that_is_set() {
    let clock = Clock::manual(Timestamp::from_second(1_800_000_000).unwrap());
    let mut host = Host::with_clock(1, 0, clock).await;
    let id = ended(&host, keeps(100), 3).await;
    let left = |host: &Host, vm: &Vm| vm.deadline().unwrap().1.duration_since(host.clock.now());
    host.until_state(id, State::Kept).await;
    host.clock.advance(Duration::from_secs(40));
    heartbeat(&host).await;
    host.restart().await;
    for step in [SignedDuration::from_hours(24), SignedDuration::from_hours(-1)] {
        let shown = host.clock.now();
        host.clock.set_system(step);
        tokio::time::timeout(super::PATIENCE, async {
            while host.clock.now() != shown + step {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the clock does not follow");
        let vm = host.vm(id).await;
        assert_eq!((vm.state, left(&host, &vm)), (State::Kept, SignedDuration::from_secs(60)), "{step:?}");
    }
    host.clock.advance(Duration::from_millis(59_999));
    heartbeat(&host).await;
    assert_eq!(host.vm(id).await.state, State::Kept);
    host.clock.advance(Duration::from_millis(1));
    let end = host.until_state(id, State::Deleted).await;
    assert_eq!(end.end_signal, Some(EndSignal::RunnerFinished));
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_limits_how_long_a_vm_is_kept() {
    let mut host = Host::new(1, 0).await;
    host.crash().await;
    host.capacity.max_kept_seconds = 60;
    host.start().await;
    let refused = host.services().admission.create(keeps(61), None, &token()).await.err().unwrap();
    assert_eq!(refused.fields[0].pointer, "/budgets/keep_on_failure_seconds");
    let asked = KeepOnFailure { seconds: 61 };
    let other = VmRequest { keep_on_failure: Some(asked), ..request("linux", job()) };
    let refused = host.services().admission.create(other, None, &token()).await.err().unwrap();
    assert_eq!(refused.fields[0].pointer, "/keep_on_failure/seconds");
    let id = ended(&host, keeps(60), 3).await;
    assert_eq!(host.until_state(id, State::Kept).await.spec.budgets.keep_on_failure_seconds, 60);
    host.delete(id, false).await;
    host.until_state(id, State::Deleted).await;
}
