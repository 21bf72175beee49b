//! Ordinary lives, and each way in which one can go wrong.

use std::time::Duration;

use mayfly::domain::BudgetsPatch;

use super::prelude::*;

#[tokio::test(flavor = "multi_thread")]
async fn queued_jobs_take_turns_in_the_order_they_came() {
    let host = Host::new(2, 2).await;
    host.play_guests();
    let mut ids = Vec::new();
    for _ in 0..12 {
        ids.push(host.create(request("linux", job())).await);
    }
    let mut started = Vec::new();
    for id in &ids {
        let vm = host.until_state(*id, State::Deleted).await;
        assert_eq!(vm.outcome.as_ref().unwrap().result, OutcomeResult::Completed, "{vm:#?}");
        assert_eq!(vm.end_signal, Some(EndSignal::RunnerFinished));
        started.push(vm.timeline.iter().find(|t| t.state == State::Cloning).unwrap().at);
    }
    assert!(started.is_sorted(), "{started:?}");
    assert_eq!(host.world.peak(), 2);
    host.assert_clean(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_boot_is_tried_again_on_a_fresh_clone_and_then_given_up() {
    let host = Host::new(2, 2).await;
    host.play_guests();
    host.world.fail_next(Verb::Create, 1, ErrorKind::Retry, Code::CloneFailed, "the disk was busy");
    let a = host.create(request("linux", job())).await;
    let vm = host.until_state(a, State::Deleted).await;
    assert_eq!((vm.attempt, vm.outcome.unwrap().result), (1, OutcomeResult::Completed), "the same step again");

    host.world.fail_next(Verb::Start, 1, ErrorKind::Permanent, Code::BootFailed, "no such machine");
    let b = host.create(request("linux", job())).await;
    let vm = host.until_state(b, State::Deleted).await;
    let outcome = vm.outcome.unwrap();
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Failed, Some(Code::BootFailed)));

    // Guests that die while booting: three clones, then the end.
    let world = host.world.clone();
    host.world.on_boot(move |guest| {
        let world = world.clone();
        tokio::spawn(async move { world.end(&guest.spec.name, GoneCause::GuestReset) });
    });
    let c = host.create(request("linux", job())).await;
    let vm = host.until_state(c, State::Deleted).await;
    assert_eq!((vm.attempt, vm.end_signal), (3, Some(EndSignal::GivenUp)), "{vm:#?}");
    assert_eq!(vm.outcome.unwrap().code, Some(Code::GuestEndedEarly));
    host.assert_clean(&[a, b, c]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_at_its_limit_is_not_the_vms_fault() {
    let host = Host::new(4, 2).await;
    host.play_guests();
    // The kernel has lost a slot: it refuses though nothing of ours is there.
    host.world.limit(GuestOs::Linux, Some(0));
    let id = host.create(request("linux", job())).await;
    let vm = host.until(id, |vm| vm.queue.as_ref().is_some_and(|q| q.reason == QueueReason::Host)).await;
    assert_eq!(vm.failed_attempts, 0);
    host.world.limit(GuestOs::Linux, None);
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed);
    host.assert_clean(&[id]).await;
}

/// One kernel slot is leaked: one guest runs, the other waits for the host, whose fault is shown and goes with the leak.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_slot_is_shown_and_heals() {
    let host = Host::new(4, 2).await;
    host.world.limit(GuestOs::Macos, Some(1));
    let runs = host.create(request("macos", RunnerRequest::None)).await;
    super::away::boots(&host, runs).await;
    let waits = host.create(request("macos", RunnerRequest::None)).await;
    let vm = host.until(waits, |vm| vm.queue.as_ref().is_some_and(|q| q.reason == QueueReason::Host)).await;
    assert_eq!((vm.failed_attempts, vm.last_fault.unwrap().code), (0, Code::HostLimit));
    let shown = host.until_host(|view| !view.ceilings.is_empty()).await.ceilings;
    let [fault] = &shown[..] else { panic!("{shown:?}") };
    assert_eq!((fault.os, fault.admits), (GuestOs::Macos, 1));
    // It is found out again and again, by one vm at a time, and the age stays that of the first refusal.
    let later = host.until_host(|view| view.ceilings.first().is_some_and(|c| c.refusals >= 3)).await.ceilings;
    assert_eq!(later[0].fault.at, fault.fault.at);
    assert!(later[0].last_at > fault.last_at);
    assert_eq!(host.vm(runs).await.attempt, 1, "what runs is left alone");
    // A guest of the other kind has its own limit.
    let linux = host.create(request("linux", RunnerRequest::None)).await;
    super::away::boots(&host, linux).await;

    host.world.limit(GuestOs::Macos, Some(2));
    host.world.until(|world| world.running() == 3).await;
    // A start alone proves nothing.
    assert_eq!(host.until_host(|_| true).await.ceilings.len(), 1);
    host.say_ready(waits).await;
    host.until_host(|view| view.ceilings.is_empty()).await;
    for id in [runs, waits, linux] {
        host.delete(id, true).await;
        host.until_state(id, State::Deleted).await;
    }
    assert_eq!(host.world.peak_of(GuestOs::Macos), 2);
    host.assert_clean(&[runs, waits, linux]).await;
}

/// Some hypervisors are refused seconds after their start: the fault that was known is still the same one.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_after_the_start_does_not_lift_the_ceiling() {
    let host = Host::new(4, 2).await;
    host.world.limit(GuestOs::Macos, Some(1));
    let runs = host.create(request("macos", RunnerRequest::None)).await;
    super::away::boots(&host, runs).await;
    host.say_ready(runs).await;
    host.until_state(runs, State::Configuring).await;
    let waits = host.create(request("macos", RunnerRequest::None)).await;
    let first = host.until_host(|view| !view.ceilings.is_empty()).await.ceilings.remove(0);
    host.world.fail_next(Verb::Ended, 1, ErrorKind::Host, Code::HostLimit, "late");
    host.world.limit(GuestOs::Macos, None);
    let later = host.until_host(|view| view.ceilings.first().is_some_and(|c| c.last_at > first.last_at)).await;
    assert_eq!(later.ceilings[0].fault.at, first.fault.at, "the same fault goes on");
    let vm = host
        .until(waits, |vm| vm.state == State::Booting && vm.last_fault.as_ref().is_some_and(|f| f.detail == "late"))
        .await;
    assert_eq!(vm.failed_attempts, 0);
    host.say_ready(waits).await;
    host.until_host(|view| view.ceilings.is_empty()).await;
    for id in [runs, waits] {
        host.delete(id, true).await;
        host.until_state(id, State::Deleted).await;
    }
    host.assert_clean(&[runs, waits]).await;
}

/// Whatever the host's reason is: it is shown with its remedy as long as it keeps vms waiting.
#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_of_the_host_is_shown_until_it_is_over() {
    let host = Host::new(1, 0).await;
    host.play_guests();
    for (verb, code, step) in
        [(Verb::Start, Code::HostRefused, State::Booting), (Verb::Create, Code::HostFull, State::Cloning)]
    {
        host.world.fail_next(verb, 2, ErrorKind::Host, code, "the keychain is locked");
        let id = host.create(request("linux", job())).await;
        let view = host.until_host(|view| view.refusals.first().is_some_and(|r| r.refusals == 2)).await;
        let [refusal] = &view.refusals[..] else { panic!("{:?}", view.refusals) };
        assert_eq!((refusal.driver.as_str(), refusal.step, refusal.fault.code), ("fake", step, code));
        assert_eq!(refusal.fault.detail, "the keychain is locked");
        assert!(refusal.last_at > refusal.fault.at);
        let vm = host.until_state(id, State::Deleted).await;
        assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed);
        host.until_host(|view| view.refusals.is_empty()).await;
        host.assert_clean(&[id]).await;
    }
}

/// Two slots, two guests of somebody else whom no list shows: nothing can be started, nothing is blamed on the vm.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_slot_left_admits_nothing() {
    let host = Host::new(4, 2).await;
    host.world.limit(GuestOs::Macos, Some(0));
    let ids = [
        host.create(request("macos", RunnerRequest::None)).await,
        host.create(request("macos", RunnerRequest::None)).await,
        host.create(request("macos", RunnerRequest::None)).await,
    ];
    let view = host.until_host(|view| view.ceilings.first().is_some_and(|c| c.admits == 0 && c.refusals >= 4)).await;
    assert_eq!(view.ceilings.len(), 1);
    for id in ids {
        assert_eq!(host.vm(id).await.failed_attempts, 0);
    }
    assert_eq!(host.world.snapshot().starts, 0);
    host.world.limit(GuestOs::Macos, None);
    for id in ids {
        host.until_state(id, State::Booting).await;
        host.world.until(|world| world.running() == 1).await;
        host.say_ready(id).await;
        host.until_host(|view| view.ceilings.is_empty()).await;
        host.delete(id, true).await;
        host.until_state(id, State::Deleted).await;
    }
    host.assert_clean(&ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_vms_take_slots_and_are_never_touched() {
    let host = Host::new(4, 2).await;
    host.play_guests();
    host.world.add_foreign("somebody's mac", GuestOs::Macos, 2, 4096);
    host.world.add_foreign("another mac", GuestOs::Macos, 2, 4096);
    let mac = host.create(request("macos", RunnerRequest::None)).await;
    let linux = host.create(request("linux", job())).await;
    host.until_state(linux, State::Deleted).await;
    let waiting = host.vm(mac).await;
    assert_eq!((waiting.state, waiting.queue.unwrap().reason), (State::Queued, QueueReason::Slot));
    host.world.remove_foreign("another mac");
    host.until_state(mac, State::Booting).await;
    host.delete(mac, false).await;
    host.until_state(mac, State::Deleted).await;
    assert_eq!(host.world.peak_of(GuestOs::Macos), 2);
    host.assert_clean(&[mac, linux]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bears_our_name_and_has_no_row_is_swept() {
    let mut host = Host::new(2, 2).await;
    let id = host.create(request("linux", RunnerRequest::None)).await;
    host.until_state(id, State::Booting).await;
    tokio::time::timeout(super::PATIENCE, host.world.until(|s| s.running() == 1)).await.unwrap();
    host.world.add_foreign("not ours", GuestOs::Linux, 1, 64);
    host.crash().await;
    // The database is lost, the guest is not.
    for file in ["mayfly.db", "mayfly.db-wal", "mayfly.db-shm"] {
        let _ = std::fs::remove_file(host.dir.path().join(file));
    }
    assert_eq!(host.world.snapshot().running(), 1);
    host.start().await;
    tokio::time::timeout(super::PATIENCE, host.world.until(|s| s.instances.is_empty())).await.unwrap();
    assert_eq!(host.world.violations(), Vec::<String>::new());
    let difference = host.services().hosts.difference().await.unwrap();
    assert_eq!(difference.foreign.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn deletes_end_what_is_idle_at_once_and_what_works_when_it_is_done() {
    let host = Host::new(2, 2).await;
    // A guest that takes a job and says nothing more.
    let serving = host.serving.clone();
    host.world.on_boot(move |guest| {
        let serving = serving.clone();
        tokio::spawn(async move {
            let id = mayfly::domain::InstanceName::parse(guest.spec.name.as_str()).unwrap();
            for report in [
                mayfly::service::guests::GuestEvent::GuestReady {},
                mayfly::service::guests::GuestEvent::GuestConfigured { attempt: None, separate_users: None },
                mayfly::service::guests::GuestEvent::JobStarted {},
            ] {
                super::tell(&serving, id, super::Report::Event(report)).await;
            }
        });
    });
    let busy =
        |vm: &mayfly::domain::Vm| vm.runner_status == mayfly::domain::RunnerStatus::Busy && vm.state == State::Running;
    let a = host.create(request("linux", job())).await;
    host.until(a, busy).await;
    host.delete(a, false).await;
    host.delete(a, false).await;
    let vm = host.vm(a).await;
    assert_eq!((vm.state, vm.announced_by), (State::Draining, Some(mayfly::domain::Announcer::Admin)));
    host.delete(a, true).await;
    let vm = host.until_state(a, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.outcome.unwrap().result), (Some(EndSignal::Admin), OutcomeResult::Cancelled));

    // The drain budget is the last word.
    let mut with_budget = request("linux", job());
    with_budget.budgets = BudgetsPatch { drain_seconds: Some(1), ..BudgetsPatch::default() };
    let b = host.create(with_budget).await;
    host.until(b, busy).await;
    host.delete(b, false).await;
    let vm = host.until_state(b, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::DrainBudget));

    // Queued vms go at once, and never had an instance.
    let fillers = [
        host.create(request("linux", RunnerRequest::None)).await,
        host.create(request("linux", RunnerRequest::None)).await,
    ];
    let c = host.create(request("linux", job())).await;
    host.until(c, |vm| vm.state == State::Queued).await;
    host.delete(c, false).await;
    assert_eq!(host.vm(c).await.timeline.len(), 2);
    for id in fillers {
        host.delete(id, true).await;
        host.until_state(id, State::Deleted).await;
    }
    host.assert_clean(&[a, b, c, fillers[0], fillers[1]]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_has_an_end() {
    let host = Host::new(0, 0).await;
    let mut patient = request("linux", job());
    patient.queue_timeout_seconds = Some(1);
    let id = host.create(patient).await;
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.outcome.unwrap().code), (Some(EndSignal::QueueBudget), Some(Code::QueueTimeout)));
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cleaning_up_is_tried_until_it_works() {
    let host = Host::new(1, 2).await;
    host.play_guests();
    host.world.fail_next(Verb::Destroy, 2, ErrorKind::Permanent, Code::Internal, "the disk does not let go");
    host.world.fail_next(Verb::Stop, 1, ErrorKind::Host, Code::HostUnavailable, "no answer");
    let a = host.create(request("linux", job())).await;
    let b = host.create(request("linux", job())).await;
    let vm = host.until_state(a, State::Deleted).await;
    assert_eq!(vm.last_fault.unwrap().detail, "the disk does not let go");
    host.until_state(b, State::Deleted).await;
    assert_eq!(host.world.peak(), 1, "the slot was not given away before the disk was gone");
    host.assert_clean(&[a, b]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_that_does_not_list_closes_the_host_and_says_so() {
    let host = Host::new(1, 2).await;
    host.world.fail_next(Verb::List, 1, ErrorKind::Host, Code::HostUnavailable, "cannot list");
    host.play_guests();
    let id = host.create(request("linux", job())).await;
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Completed);
    tokio::time::timeout(Duration::from_secs(20), host.world.until(|s| s.instances.is_empty())).await.unwrap();
}
