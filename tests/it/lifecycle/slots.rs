//! A slot is given after a look at the host that began after it was asked for, and a guest is started after one more.

use std::time::{Duration, Instant};

use mayfly::{
    domain::{BudgetsPatch, Error, VmId},
    platform::Clock,
};

use super::prelude::*;
use crate::support::dice::Dice;

async fn now(host: &Host, template: &str) -> Result<VmId, Error> {
    let mut request = request(template, RunnerRequest::None);
    request.queue_timeout_seconds = Some(0);
    host.services().admission.create(request, None, &super::token()).await.map(|created| created.vm.id())
}

fn waits_for(reason: QueueReason) -> impl Fn(&mayfly::domain::Vm) -> bool {
    move |vm| vm.queue.as_ref().is_some_and(|queue| queue.reason == reason)
}

async fn observed(host: &Host) {
    host.until_host(|view| view.observed).await;
}

async fn finish(host: &Host, ids: &[VmId]) {
    for id in ids {
        host.delete(*id, true).await;
        host.until_state(*id, State::Deleted).await;
    }
    host.assert_clean(ids).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn now_or_never_knows_which_foreign_guests_run() {
    let host = Host::new(1, 1).await;
    observed(&host).await;
    let mut ids = Vec::new();
    for template in ["macos", "linux"] {
        let os = if template == "macos" { GuestOs::Macos } else { GuestOs::Linux };
        host.world.note_above(os, 1);
        for _ in 0..3 {
            // It came this moment, and no timer has shown it yet.
            host.world.add_foreign("foreign", os, 1, 64);
            assert_eq!(now(&host, template).await.unwrap_err().code, Code::SlotUnavailable);
            host.world.remove_foreign("foreign");
            let id = now(&host, template).await.unwrap();
            host.until_state(id, State::Booting).await;
            assert_eq!(now(&host, template).await.unwrap_err().code, Code::SlotUnavailable, "the slot is ours");
            host.delete(id, true).await;
            host.until_state(id, State::Deleted).await;
            ids.push(id);
        }
        assert_eq!(host.world.overbooked(), Vec::<String>::new());
    }
    host.assert_clean(&ids).await;
}

/// The look that is under way does not show what came after it began: who asks now is served by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_that_began_before_the_demand_decides_nothing() {
    let host = Host::new(0, 1).await;
    observed(&host).await;
    // It waits for ever, so the host is looked at again and again.
    let waits = host.create(request("linux", RunnerRequest::None)).await;
    host.until(waits, waits_for(QueueReason::Slot)).await;
    let lists = host.world.snapshot().calls(Verb::List);
    let (looked, has_looked) = tokio::sync::oneshot::channel();
    host.world.answer_late(Verb::List, true);
    host.world.after_next(Verb::List, |world| {
        world.add_foreign("foreign", GuestOs::Macos, 1, 64);
        let _ = looked.send(());
    });
    tokio::time::timeout(super::PATIENCE, has_looked).await.unwrap().unwrap();
    let queued = host.create(request("macos", RunnerRequest::None)).await;
    host.world.answer_late(Verb::List, false);
    tokio::time::timeout(super::PATIENCE, host.world.until(|s| s.calls(Verb::List) >= lists + 3)).await.unwrap();
    let vm = host.vm(queued).await;
    assert_eq!((vm.state, vm.attempt), (State::Queued, 0), "it was given a slot that was taken: {vm:#?}");
    host.world.remove_foreign("foreign");
    host.until_state(queued, State::Booting).await;
    finish(&host, &[waits, queued]).await;
}

/// It takes the slot of a vm whose template is being cloned: the vm goes back, is not blamed, keeps its place, and is never started
/// beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_guest_that_starts_meanwhile_is_found_before_ours_is_started() {
    for now_or_never in [false, true] {
        let host = Host::new(4, 1).await;
        host.world.note_above(GuestOs::Macos, 1);
        observed(&host).await;
        host.world.after_next(Verb::Create, |world| world.add_foreign("foreign", GuestOs::Macos, 1, 64));
        let first = if now_or_never {
            now(&host, "macos").await.unwrap()
        } else {
            host.create(request("macos", RunnerRequest::None)).await
        };
        let vm = host.until(first, |vm| vm.state == State::Queued && vm.attempt == 1).await;
        assert_eq!(vm.queue.as_ref().unwrap().reason, QueueReason::Slot, "{vm:#?}");
        assert_eq!((vm.failed_attempts, vm.last_fault.as_ref().unwrap().code), (0, Code::SlotTaken), "{vm:#?}");
        assert_eq!(host.world.snapshot().starts, 0);
        let younger = host.create(request("macos", RunnerRequest::None)).await;
        assert_eq!(now(&host, "macos").await.unwrap_err().code, Code::SlotUnavailable);

        host.world.remove_foreign("foreign");
        host.until_state(first, State::Booting).await;
        assert_eq!(host.vm(younger).await.attempt, 0, "the older one is the next");
        host.delete(first, true).await;
        host.until_state(younger, State::Booting).await;
        finish(&host, &[first, younger]).await;
        assert_eq!(host.world.peak_of(GuestOs::Macos), 1);
        assert_eq!(host.world.overbooked(), Vec::<String>::new());
    }
}

/// Two vms hold the two slots and are about to start when a foreign guest takes one of these: the older one starts.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_start_one_gives_way_to_a_foreign_guest() {
    for _ in 0..5 {
        let host = Host::new(4, 2).await;
        host.world.note_above(GuestOs::Macos, 2);
        host.world.answer_late(Verb::Create, true);
        let ids = [
            host.create(request("macos", RunnerRequest::None)).await,
            host.create(request("macos", RunnerRequest::None)).await,
        ];
        let cloned = host.world.until(|s| s.instances.len() == 2);
        tokio::time::timeout(super::PATIENCE, cloned).await.unwrap();
        host.world.add_foreign("foreign", GuestOs::Macos, 1, 64);
        host.world.answer_late(Verb::Create, false);
        let younger = host.until(ids[1], |vm| vm.state == State::Queued && vm.attempt == 1).await;
        assert_eq!(younger.queue.unwrap().reason, QueueReason::Slot);
        let started = host.world.until(|s| s.starts == 1);
        tokio::time::timeout(super::PATIENCE, started).await.unwrap();
        let older = host.vm(ids[0]).await;
        assert_eq!((older.state, older.attempt, older.last_fault), (State::Booting, 1, None));
        assert_eq!((host.world.peak_of(GuestOs::Macos), host.world.overbooked()), (2, vec![]));
        finish(&host, &ids).await;
    }
}

/// Foreign guests take its slot again and again: all its waiting together is bounded, as if it had waited once.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_is_taken_again_and_again_makes_the_wait_no_longer() {
    let clock = Clock::manual(jiff::Timestamp::from_second(1_700_000_000).unwrap());
    let host = Host::with_clock(4, 1, clock.clone()).await;
    observed(&host).await;
    let mut request = request("macos", RunnerRequest::None);
    request.queue_timeout_seconds = Some(0);
    request.budgets = BudgetsPatch { boot_seconds: Some(10), ..BudgetsPatch::default() };
    let taken = |host: &Host| {
        host.world.after_next(Verb::Create, |world| world.add_foreign("foreign", GuestOs::Macos, 1, 64));
        host.world.remove_foreign("foreign");
    };
    taken(&host);
    let id = host.create(request).await;
    for attempt in 1..=3 {
        host.until(id, |vm| vm.state == State::Queued && vm.attempt == attempt).await;
        if attempt < 3 {
            clock.advance(Duration::from_secs(4));
            taken(&host);
        }
    }
    clock.advance(Duration::from_millis(1900));
    assert_eq!(host.vm(id).await.state, State::Queued);
    clock.advance(Duration::from_millis(200));
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!(vm.outcome.unwrap().code, Some(Code::QueueTimeout));
    host.assert_clean(&[id]).await;
}

/// A host with one slot and a clock that stands still, that refuses every start.
async fn refusing(times: usize) -> Host {
    let clock = Clock::manual(jiff::Timestamp::from_second(1_700_000_000).unwrap());
    let mut host = Host::with_clock(1, 0, clock).await;
    host.retry_backoff = Duration::from_secs(2);
    host.restart().await;
    observed(&host).await;
    host.world.fail_next(Verb::Start, times, ErrorKind::Host, Code::HostRefused, "the keychain is locked");
    host
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_vm_keeps_its_place_and_is_tried_again_soon() {
    let host = refusing(4).await;
    let first = host.create(request("linux", RunnerRequest::None)).await;
    host.until(first, |vm| vm.state == State::Queued && vm.attempt == 1).await;
    let lists = host.world.snapshot().calls(Verb::List);
    let younger = host.create(request("linux", RunnerRequest::None)).await;
    tokio::time::timeout(super::PATIENCE, host.world.until(|s| s.calls(Verb::List) > lists)).await.unwrap();
    for (attempt, pause) in [(1, 2), (2, 4), (3, 8), (4, 16)] {
        let vm = host.until(first, |vm| vm.state == State::Queued && vm.attempt == attempt).await;
        let queue = vm.queue.unwrap();
        let pause = jiff::SignedDuration::from_secs(pause);
        assert_eq!((queue.reason, queue.not_before), (QueueReason::Host, Some(host.clock.now() + pause)));
        host.clock.advance(pause.try_into().unwrap());
    }
    let vm = host.until_state(first, State::Booting).await;
    assert_eq!((vm.attempt, vm.failed_attempts), (5, 0));
    assert_eq!(host.vm(younger).await.attempt, 0, "a younger one took the slot during a pause");
    host.delete(first, true).await;
    host.until_state(younger, State::Booting).await;
    finish(&host, &[first, younger]).await;
}

/// The pauses and the refused attempts are parts of one wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_refuses_for_ever_makes_the_wait_no_longer() {
    for wait in [0, 100] {
        let host = refusing(100).await;
        let begin = host.clock.now();
        let mut asked = request("linux", RunnerRequest::None);
        asked.queue_timeout_seconds = Some(wait);
        let takes_time = || {
            let clock = host.clock.clone();
            host.world.after_next(Verb::Create, move |_| clock.advance(Duration::from_secs(3)));
        };
        takes_time();
        let id = host.create(asked).await;
        for attempt in 1.. {
            let vm = host
                .until(id, |vm| vm.state == State::Deleted || (vm.state == State::Queued && vm.attempt == attempt))
                .await;
            let Some(queue) = vm.queue else { break };
            let next = queue.not_before.unwrap().min(queue.deadline);
            takes_time();
            let pause = next.duration_since(host.clock.now());
            host.clock.advance(pause.try_into().unwrap_or_default());
            if next == queue.deadline {
                host.until_state(id, State::Deleted).await;
            }
        }
        let vm = host.vm(id).await;
        let waited = host.clock.now().duration_since(begin).as_secs();
        assert!((i64::from(wait)..=i64::from(wait) + 3).contains(&waited), "{waited} s: {vm:#?}");
        assert_eq!(vm.outcome.unwrap().code, Some(Code::QueueTimeout));
        assert_eq!((vm.failed_attempts, vm.last_fault.unwrap().code), (0, Code::HostRefused));
        host.assert_clean(&[id]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_shown_is_looked_at_anew_and_says_its_age() {
    let host = Host::new(2, 2).await;
    observed(&host).await;
    let id = host.create(request("linux", RunnerRequest::None)).await;
    host.until_state(id, State::Booting).await;
    tokio::time::timeout(super::PATIENCE, host.world.until(|s| s.running() == 1)).await.unwrap();
    host.world.add_foreign("foreign", GuestOs::Macos, 1, 64);
    let before = host.clock.now();
    let difference = host.services().hosts.difference().await.unwrap();
    assert_eq!((difference.foreign.len(), difference.known), (1, vec![id]), "it came a moment ago");
    assert!(difference.observed_at >= before && difference.unlisted.is_empty());
    assert_eq!((difference.strays, difference.missing), (vec![], vec![]));
    let status = host.services().hosts.status().await.unwrap();
    assert_eq!((status.view.instances.len(), status.foreign.macos, status.leased.linux), (2, 1, 1));

    host.world.fail_next(Verb::List, 1, ErrorKind::Host, Code::HostUnavailable, "cannot list");
    host.world.remove_foreign("foreign");
    let blind = host.services().hosts.difference().await.unwrap();
    assert_eq!((blind.unlisted, blind.observed_at), (vec!["fake".to_owned()], difference.observed_at));
    assert_eq!((blind.foreign, blind.strays, blind.missing), (vec![], vec![], vec![]), "nothing is known of it now");
    finish(&host, &[id]).await;
    // A look that is older than a second is not shown.
    let begun = Instant::now();
    while !host.services().hosts.status().await.unwrap().view.instances.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(3), "an ended guest is shown as running");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_that_does_not_answer_is_no_free_slot() {
    let host = Host::new(2, 2).await;
    observed(&host).await;
    host.world.hang(Verb::List, true);
    for template in ["linux", "macos"] {
        let began = Instant::now();
        let error = now(&host, template).await.unwrap_err();
        assert_eq!(error.code, Code::HostUnavailable, "{error}");
        assert!(error.detail.contains("has not listed its instances"), "{error}");
        assert!(error.retry_after.is_some() && began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    }
    let queued = host.create(request("linux", RunnerRequest::None)).await;
    host.world.hang(Verb::List, false);
    host.until_state(queued, State::Booting).await;
    let at_once = now(&host, "macos").await.unwrap();
    finish(&host, &[queued, at_once]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn before_the_first_look_nothing_is_refused_for_want_of_a_slot() {
    let mut host = Host::new(2, 2).await;
    host.world.hang(Verb::Probe, true);
    host.restart().await;
    assert_eq!(now(&host, "linux").await.unwrap_err().code, Code::HostUnavailable);
    host.world.hang(Verb::Probe, false);
    observed(&host).await;
    let id = now(&host, "linux").await.unwrap();
    finish(&host, &[id]).await;
}

/// One thread, so that nothing comes between the last look and the start that would excuse an overbooked host.
#[tokio::test]
async fn foreign_guests_come_and_go_and_the_host_is_never_overbooked() {
    for seed in 1..=8u64 {
        let mut dice = Dice::new(seed);
        let host = Host::new(3, 2).await;
        for (os, cap) in [(GuestOs::Macos, 2), (GuestOs::Linux, 3)] {
            host.world.note_above(os, cap);
        }
        host.world.delay(Verb::Create, Duration::from_millis(3));
        host.world.delay(Verb::List, Duration::from_millis(2));
        observed(&host).await;
        let (mut ids, mut taken) = (Vec::new(), 0);
        for _ in 0..80 {
            let (template, os) = if dice.roll(3) == 0 { ("linux", GuestOs::Linux) } else { ("macos", GuestOs::Macos) };
            let foreign = format!("foreign {template} {}", dice.roll(2));
            match dice.roll(9) {
                0..=1 => ids.push(host.create(request(template, RunnerRequest::None)).await),
                2..=3 => match now(&host, template).await {
                    Ok(id) => ids.push(id),
                    Err(error) => assert_eq!(error.code, Code::SlotUnavailable, "{error}"),
                },
                4 => host.world.add_foreign(&foreign, os, 1, 64),
                5 => host.world.remove_foreign(&foreign),
                // In the middle of one of our verbs.
                6 => {
                    let verb = [Verb::Create, Verb::List, Verb::Destroy][dice.roll(3) as usize];
                    host.world.after_next(verb, move |world| world.add_foreign(&foreign, os, 1, 64));
                }
                _ if !ids.is_empty() => {
                    let id = ids[dice.roll(ids.len() as u64) as usize];
                    host.delete(id, true).await;
                }
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(dice.roll(8))).await;
        }
        for id in &ids {
            taken += usize::from(host.vm(*id).await.last_fault.is_some_and(|fault| fault.code == Code::SlotTaken));
        }
        for template in ["linux", "macos"] {
            for n in 0..2 {
                host.world.remove_foreign(&format!("foreign {template} {n}"));
            }
        }
        finish(&host, &ids).await;
        assert_eq!(host.world.overbooked(), Vec::<String>::new(), "seed {seed}, {taken} of {} went back", ids.len());
    }
}
