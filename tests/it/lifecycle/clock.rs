//! The host's clock is set, while the service runs and while it is down: no budget is spent by that, and none becomes longer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mayfly::{
    domain::{Budget, BudgetsPatch, Vm, VmId, VmRequest},
    platform::Clock,
    service::guests::GuestEvent,
};

use super::{
    away::{boots, heartbeat, held_back},
    prelude::*,
};

/// A day forward, as when the first NTP answer comes late, and an hour back.
const STEPS: [SignedDuration; 2] = [SignedDuration::from_hours(24), SignedDuration::from_hours(-1)];

fn clock() -> Clock {
    Clock::manual(Timestamp::from_second(1_800_000_000).unwrap())
}

/// A vm that waits a hundred seconds and is tried once.
fn impatient() -> VmRequest {
    VmRequest {
        queue_timeout_seconds: Some(100),
        budgets: BudgetsPatch { max_attempts: Some(1), ..BudgetsPatch::default() },
        ..request("linux", job())
    }
}

/// What is left of the budget that ends next.
fn left(host: &Host, vm: &Vm) -> (Budget, SignedDuration) {
    let (budget, at) = vm.deadline().unwrap();
    (budget, at.duration_since(host.clock.now()))
}

/// Sets the system's clock, and returns once the service has noticed.
async fn set(host: &Host, step: SignedDuration) {
    let shown = host.clock.now();
    host.clock.set_system(step);
    follows(host, shown + step).await;
}

/// Returns once the service's clock shows this. Deadlines move before.
async fn follows(host: &Host, shown: Timestamp) {
    let followed = async {
        while host.clock.now() != shown {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, followed).await.expect("the clock does not follow");
}

/// Nothing is left of the budget in this moment, and not sooner.
async fn ends_in_time(host: &Host, id: VmId, budget: Budget) {
    let vm = host.vm(id).await;
    let (next, remaining) = left(host, &vm);
    assert_eq!(next, budget, "{vm:#?}");
    host.clock.advance(Duration::try_from(remaining).unwrap() - Duration::from_millis(1));
    heartbeat(host).await;
    let before = host.vm(id).await;
    assert_eq!(
        (before.state, before.attempt, left(host, &before)),
        (vm.state, vm.attempt, (budget, SignedDuration::from_millis(1)))
    );
    host.clock.advance(Duration::from_millis(1));
    let code = host.until(id, |vm| vm.state != before.state || vm.state == State::Deleted).await;
    let code = code.outcome.and_then(|outcome| outcome.code).or(code.last_fault.map(|fault| fault.code));
    assert_eq!(code, budget.end().map(|(_, code)| code));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_spends_and_prolongs_no_budget() {
    for step in STEPS {
        for budget in [Budget::Boot, Budget::Lifetime, Budget::Drain, Budget::Queue] {
            let host = Host::with_clock(1, 0, clock()).await;
            let _held = held_back(&host);
            let first = host.create(impatient()).await;
            boots(&host, first).await;
            let mut id = first;
            if matches!(budget, Budget::Lifetime | Budget::Drain) {
                let configured = GuestEvent::GuestConfigured { attempt: Some(1), separate_users: None };
                host.services().guests.report(id, configured).await.unwrap();
                host.services().guests.report(id, GuestEvent::JobStarted {}).await.unwrap();
            }
            if budget == Budget::Drain {
                host.services()
                    .vms
                    .end(id, &mayfly::domain::token::Caller::Guest(id, mayfly::domain::GuestRole::Wrapper), false)
                    .await
                    .unwrap();
            }
            if budget == Budget::Queue {
                id = host.create(impatient()).await;
            }
            host.clock.advance(Duration::from_secs(7));
            let before = left(&host, &host.vm(id).await);
            assert_eq!(before.0, budget);
            set(&host, step).await;
            let vm = host.vm(id).await;
            assert_eq!(left(&host, &vm), before, "{budget:?} {step}: {vm:#?}");
            assert_eq!(vm.updated_at, host.clock.now());
            // A second one, back to where it was.
            set(&host, -step).await;
            assert_eq!(left(&host, &host.vm(id).await), before, "{budget:?} {step} and back");
            set(&host, step).await;
            ends_in_time(&host, id, budget).await;
            host.delete(first, true).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_while_the_service_is_down_spends_and_prolongs_no_budget() {
    for step in STEPS {
        let mut host = Host::with_clock(1, 0, clock()).await;
        let _held = held_back(&host);
        let (running, queued) = (host.create(impatient()).await, host.create(impatient()).await);
        boots(&host, running).await;
        let configured = GuestEvent::GuestConfigured { attempt: Some(1), separate_users: None };
        host.services().guests.report(running, configured).await.unwrap();
        host.clock.advance(Duration::from_secs(7));
        heartbeat(&host).await;
        let before = [left(&host, &host.vm(running).await), left(&host, &host.vm(queued).await)];
        assert_eq!(before.map(|(budget, _)| budget), [Budget::Lifetime, Budget::Queue]);
        host.crash().await;
        host.clock.advance(Duration::from_secs(20));
        let shown = host.clock.now();
        host.clock.set_system(step);
        host.start().await;
        follows(&host, shown + step).await;
        for (id, (budget, remaining)) in [running, queued].into_iter().zip(before) {
            let vm = host.until(id, |vm| vm.stepped_ms != 0).await;
            // The job went on meanwhile, and the caller waited.
            let remaining = remaining - SignedDuration::from_secs(20);
            assert_eq!(left(&host, &vm), (budget, remaining), "{step}: {vm:#?}");
        }
        // It is applied once.
        host.restart().await;
        heartbeat(&host).await;
        assert_eq!(host.vm(running).await.stepped_ms, i64::try_from(step.as_millis()).unwrap());
        host.delete(queued, true).await;
        ends_in_time(&host, running, Budget::Lifetime).await;
    }
}

/// The pause before the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_spends_and_prolongs_no_pause() {
    for step in STEPS {
        let host = Host::with_clock(1, 0, clock()).await;
        host.world.fail_next(Verb::Create, 1, ErrorKind::Host, Code::HostRefused, "not now");
        let id = host.create(request("linux", RunnerRequest::None)).await;
        let vm = host.until(id, |vm| vm.state == State::Queued && vm.attempt == 1).await;
        let queue = vm.queue.unwrap();
        assert_eq!(queue.reason, QueueReason::Host);
        let pause = queue.not_before.unwrap().duration_since(host.clock.now());
        assert!(pause.is_positive());
        set(&host, step).await;
        let vm = host.vm(id).await;
        assert_eq!(vm.queue.unwrap().not_before.unwrap().duration_since(host.clock.now()), pause);
        assert_eq!(vm.attempt, 1);
        host.clock.advance(pause.try_into().unwrap());
        host.until(id, |vm| vm.attempt == 2).await;
        host.delete(id, true).await;
        host.until_state(id, State::Deleted).await;
        host.assert_clean(&[id]).await;
    }
}
