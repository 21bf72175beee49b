//! How a vm with GitHub's runner ends: never while GitHub may be giving that a job.

use mayfly::{
    domain::{Announcer, Event, RunnerStatus, event::EventKind, token::Caller},
    store::Expect,
};

use super::*;

async fn kinds(rig: &Rig, id: VmId) -> Vec<EventKind> {
    let log = rig.host.reader().events(Some(id), 0, 1000).await.unwrap();
    log.iter().map(|r| r.event.kind()).collect()
}

async fn ends_idle(rig: &Rig, id: VmId, signal: EndSignal) -> Vm {
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(signal), "{vm:#?}");
    rig.assert_clean(&[id]).await;
    vm
}

/// Its job ends as jobs do, and with it the vm.
async fn ends_with_its_job(rig: &Rig, id: VmId, jit: &str, job: u64) -> Vm {
    assert_eq!(rig.says(jit, "completejob").await.0, 200, "the runner is still there");
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::RunnerGone), "{vm:#?}");
    assert_eq!(rig.conclusion(job).await, "success");
    rig.assert_clean(&[id]).await;
    vm
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_was_there_and_is_gone_ends_its_vm() {
    let rig = Rig::new(1).await;
    let id = rig.host.create(wanted(patient())).await;
    let (vm, _) = rig.idle(id).await;
    rig.client.delete_runner(&acme(), vm.registered.unwrap().runner_id.unwrap().number().unwrap()).await.unwrap();
    let vm = ends_idle(&rig, id, EndSignal::RunnerGone).await;
    assert_eq!(vm.runner_status, RunnerStatus::Gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_was_never_there_is_not_gone() {
    let rig = Rig::new(1).await;
    let budgets = BudgetsPatch { registration_seconds: Some(1), ..patient() };
    let id = rig.host.create(wanted(budgets)).await;
    rig.given(id).await;
    let vm = rig.host.until(id, |vm| vm.registered.is_some()).await;
    rig.client.delete_runner(&acme(), vm.registered.unwrap().runner_id.unwrap().number().unwrap()).await.unwrap();
    rig.github.requests().await;
    let asks = |requests: &[Value]| requests.iter().filter(|r| r["method"] == "GET").count();
    rig.until("GitHub is asked again", async || asks(&rig.github.requests().await) >= 2).await;
    assert_eq!(rig.host.vm(id).await.state, State::Booting);
    let configured = mayfly::service::guests::GuestEvent::GuestConfigured { attempt: None, separate_users: None };
    rig.host.services().guests.report(id, configured).await.unwrap();
    let vm = ends_idle(&rig, id, EndSignal::RegistrationBudget).await;
    assert_eq!(vm.outcome.unwrap().code, Some(Code::RunnerNotRegistered));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_budget_takes_the_runner_away_first() {
    let rig = Rig::new(1).await;
    // As long as GitHub does not say that it is away, the guest stays.
    let fault = json!([{"method": "DELETE", "path": "actions/runners", "times": 12,
        "then": {"answer": {"status": 403, "body": {"message": "Resource not accessible by integration"}}}}]);
    rig.github.tell("faults", fault).await;
    let id = rig.host.create(wanted(BudgetsPatch { idle_seconds: Some(1), ..patient() })).await;
    let (vm, _) = rig.idle(id).await;
    rig.github.requests().await;
    let asks = |requests: &[Value]| requests.iter().filter(|r| r["method"] == "DELETE").count();
    rig.until("GitHub is asked to take it away", async || asks(&rig.github.requests().await) >= 1).await;
    assert_eq!(rig.host.vm(id).await.state, State::Running);
    let ended = ends_idle(&rig, id, EndSignal::IdleBudget).await;
    assert_eq!(ended.outcome.unwrap().code, Some(Code::RunnerIdle));
    assert!(ended.registered.unwrap() == vm.registered.unwrap());
}

/// GitHub shows nothing of the job yet, and refuses to remove the runner.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_budget_does_not_end_a_runner_with_a_job() {
    let rig = Rig::new(1).await;
    rig.github.tell("knobs", json!({"busy_lag_seconds": 3600})).await;
    let id = rig.host.create(wanted(BudgetsPatch { idle_seconds: Some(1), ..patient() })).await;
    let (_, jit) = rig.idle(id).await;
    let job = rig.job().await;
    let vm = rig.host.until(id, |vm| vm.runner_status == RunnerStatus::Busy).await;
    assert_eq!(vm.state, State::Running);
    ends_with_its_job(&rig, id, &jit, job).await;
}

/// The guest's word was lost, and GitHub was not looked at in time.
#[tokio::test(flavor = "multi_thread")]
async fn a_boot_budget_does_not_end_a_runner_with_a_job() {
    let mut rig = Rig::new(1).await;
    rig.host.pace.soon = Duration::from_secs(3600);
    rig.host.restart().await;
    let budgets = || BudgetsPatch { boot_seconds: Some(1), ..patient() };
    let id = rig.host.create(wanted(budgets())).await;
    let jit = rig.given(id).await;
    assert_eq!(rig.says(&jit, "connect").await.0, 200);
    let job = rig.job().await;
    let vm = rig.host.until_state(id, State::Running).await;
    assert_eq!((vm.attempt, vm.failed_attempts), (1, 0));
    rig.host.pace.soon = Duration::from_millis(20);
    rig.host.restart().await;
    ends_with_its_job(&rig, id, &jit, job).await;

    // Without a job, the runner goes before its attempt does.
    let id = rig.host.create(wanted(budgets())).await;
    rig.given(id).await;
    let vm = rig.host.until(id, |vm| vm.attempt == 2 && vm.registered.is_some()).await;
    assert!(!rig.runners().await.contains(&runner_name(&vm.spec.name, id, 1)));
    rig.host.delete(id, true).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_takes_an_idle_runner_away_first_and_waits_for_a_busy_one() {
    let rig = Rig::new(1).await;
    let booting = rig.host.create(wanted(patient())).await;
    rig.given(booting).await;
    rig.host.delete(booting, false).await;
    let vm = ends_idle(&rig, booting, EndSignal::Admin).await;
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Cancelled);

    let idle = rig.host.create(wanted(patient())).await;
    rig.idle(idle).await;
    rig.host.delete(idle, false).await;
    ends_idle(&rig, idle, EndSignal::Admin).await;

    // Mayfly does not know yet that it has one.
    rig.github.tell("knobs", json!({"busy_lag_seconds": 3600})).await;
    let busy = rig.host.create(wanted(patient())).await;
    let (_, jit) = rig.idle(busy).await;
    let job = rig.job().await;
    rig.host.delete(busy, false).await;
    rig.host.until(busy, |vm| vm.runner_status == RunnerStatus::Busy).await;
    assert_eq!(rig.host.vm(busy).await.state, State::Draining);
    ends_with_its_job(&rig, busy, &jit, job).await;
}

/// The end is asked for while GitHub is away: it is asked until it answers, across a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_waits_for_github() {
    let mut rig = Rig::new(1).await;
    let id = rig.host.create(wanted(patient())).await;
    rig.idle(id).await;
    rig.github.tell("faults", json!([{"path": "", "times": 100_000, "then": "drop"}])).await;
    rig.host.delete(id, false).await;
    rig.github.requests().await;
    let asks = |requests: &[Value]| requests.iter().filter(|r| r["method"] == "DELETE").count();
    rig.until("GitHub is asked", async || asks(&rig.github.requests().await) >= 1).await;
    rig.host.restart().await;
    rig.until("GitHub is asked again", async || asks(&rig.github.requests().await) >= 1).await;
    assert_eq!(rig.host.vm(id).await.state, State::Draining);
    rig.github.tell("calm", json!({})).await;
    ends_idle(&rig, id, EndSignal::Admin).await;
}

async fn pool_lets_go(rig: &Rig, id: VmId) {
    let ledger = &rig.host.running.as_ref().unwrap().parts.ledger;
    let announced = Event::EndAnnounced { by: Announcer::Pool };
    ledger.apply(id, Expect::Anything, announced, rig.host.clock.now()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_lets_go_of_an_idle_vm_and_never_of_a_job() {
    let rig = Rig::new(1).await;
    let idle = rig.host.create(wanted(patient())).await;
    rig.idle(idle).await;
    pool_lets_go(&rig, idle).await;
    ends_idle(&rig, idle, EndSignal::Pool).await;

    // It was given another's job a moment ago, and that takes longer than any drain.
    rig.github.tell("knobs", json!({"busy_lag_seconds": 3600})).await;
    let budgets = BudgetsPatch { drain_seconds: Some(1), drain_cap_seconds: Some(1), ..patient() };
    let busy = rig.host.create(wanted(budgets)).await;
    let (_, jit) = rig.idle(busy).await;
    let job = rig.job().await;
    pool_lets_go(&rig, busy).await;
    let vm = rig.host.until(busy, |vm| vm.drain_until.is_some()).await;
    let drained = vm.entered_at + jiff::SignedDuration::from_secs(1);
    rig.host.clock.sleep_until(drained + jiff::SignedDuration::from_millis(500)).await;
    assert_eq!(rig.host.vm(busy).await.state, State::Draining);
    ends_with_its_job(&rig, busy, &jit, job).await;
}

/// The hook called, and the upload takes longer than a drain may, up to the cap.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_at_work_is_given_time_to_upload_and_not_more() {
    let rig = Rig::new(1).await;
    let budgets = BudgetsPatch { drain_seconds: Some(1), drain_cap_seconds: Some(5), ..patient() };
    let id = rig.host.create(wanted(budgets)).await;
    let (_, jit, job) = rig.busy(id).await;
    rig.host.services().vms.end(id, &Caller::Guest(id, mayfly::domain::GuestRole::Wrapper), false).await.unwrap();
    let draining = rig.host.until_state(id, State::Draining).await;
    rig.host.clock.sleep_until(draining.entered_at + jiff::SignedDuration::from_secs(2)).await;
    assert_eq!(rig.host.vm(id).await.state, State::Draining);
    assert!(kinds(&rig, id).await.contains(&EventKind::DrainExtended));
    let vm = rig.host.until(id, |vm| vm.outcome.is_some()).await;
    assert_eq!(vm.end_signal, Some(EndSignal::DrainBudget));
    assert!(vm.updated_at >= draining.entered_at + jiff::SignedDuration::from_secs(5));
    rig.host.until_state(id, State::Deleted).await;
    // For GitHub, it may still finish.
    assert_eq!(rig.says(&jit, "completejob").await.0, 200);
    assert_eq!(rig.conclusion(job).await, "success");
    rig.assert_clean(&[id]).await;
}
