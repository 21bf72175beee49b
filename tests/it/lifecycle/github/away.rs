//! GitHub is away: what waits for it waits longer, and nothing is killed for it.

use mayfly::{
    domain::{RunnerStatus, event::EventKind},
    sources::Sources,
};

use super::*;

async fn goes_down(rig: &Rig) {
    let then = json!({"answer": {"status": 503, "body": {"message": "No server is available"}}});
    rig.github.tell("faults", json!([{"path": "", "times": 1_000_000, "then": then}])).await;
}

async fn comes_back(rig: &Rig) {
    rig.github.tell("calm", json!({})).await;
}

/// One works, one waits for a job and one for a slot, each with a budget that would long be spent; in the middle of it the
/// service is started again.
#[tokio::test(flavor = "multi_thread")]
async fn budgets_that_wait_for_github_stand_still() {
    let mut rig = Rig::new(2).await;
    let working = rig.host.create(wanted(patient())).await;
    let (_, jit, job) = rig.busy(working).await;
    // Longer than a busy machine takes to notice that GitHub is away.
    let short = || BudgetsPatch { idle_seconds: Some(6), ..patient() };
    let idle = rig.host.create(wanted(short())).await;
    rig.idle(idle).await;
    goes_down(&rig).await;
    rig.host.until(idle, |vm| vm.paused_at.is_some()).await;
    // And those that come later.
    let waiting = rig.host.create(VmRequest { queue_timeout_seconds: Some(6), ..wanted(short()) }).await;
    let vm = rig.host.until(waiting, |vm| vm.paused_at.is_some()).await;
    rig.host.clock.sleep_until(vm.created_at + jiff::SignedDuration::from_secs(7)).await;
    rig.host.restart().await;
    rig.host.clock.sleep_until(vm.created_at + jiff::SignedDuration::from_secs(8)).await;
    for (id, state, paused) in
        [(working, State::Running, false), (idle, State::Running, true), (waiting, State::Queued, true)]
    {
        let vm = rig.host.vm(id).await;
        assert_eq!((vm.state, vm.paused_at.is_some()), (state, paused), "{vm:#?}");
    }

    comes_back(&rig).await;
    let ids = [working, idle, waiting];
    for id in [idle, waiting] {
        let log = async || rig.host.reader().events(Some(id), 0, 1000).await.unwrap();
        rig.until("budgets run again", async || {
            log().await.iter().any(|r| r.event.kind() == EventKind::BudgetsResumed)
        })
        .await;
    }
    // What was left of the budget is still there, and then it ends.
    let ended = rig.host.until_state(idle, State::Deleted).await;
    assert_eq!(ended.end_signal, Some(EndSignal::IdleBudget));
    rig.idle(waiting).await;
    rig.host.delete(waiting, true).await;
    rig.host.until_state(waiting, State::Deleted).await;
    assert_eq!(rig.host.vm(working).await.runner_status, RunnerStatus::Busy);
    assert_eq!(rig.says(&jit, "completejob").await.0, 200);
    rig.host.until_state(working, State::Deleted).await;
    assert_eq!(rig.conclusion(job).await, "success");
    rig.assert_clean(&ids).await;
}

/// The vm gets its slot while GitHub cannot register anybody: it waits there, longer than cloning may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_waits_for_github() {
    let rig = Rig::new(1).await;
    goes_down(&rig).await;
    let id = rig.host.create(wanted(BudgetsPatch { clone_seconds: Some(1), ..patient() })).await;
    let vm = rig.host.until(id, |vm| vm.state == State::Cloning && vm.paused_at.is_some()).await;
    rig.host.clock.sleep_until(vm.entered_at + jiff::SignedDuration::from_secs(2)).await;
    let vm = rig.host.vm(id).await;
    assert_eq!((vm.state, vm.attempt, vm.last_fault.unwrap().code), (State::Cloning, 1, Code::GitHubUnavailable));
    comes_back(&rig).await;
    let (vm, _) = rig.idle(id).await;
    assert_eq!((vm.attempt, vm.paused_at), (1, None));
    rig.host.delete(id, false).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}

/// A job ends while GitHub is away, and its result can only be sent afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_waited_for_that_github_cannot_take_yet() {
    let mut rig = Rig::new(1).await;
    let budgets = BudgetsPatch { drain_seconds: Some(1), drain_cap_seconds: Some(60), ..patient() };
    let id = rig.host.create(wanted(budgets)).await;
    let (_, jit, job) = rig.busy(id).await;
    goes_down(&rig).await;
    rig.host
        .services()
        .vms
        .end(id, &mayfly::domain::token::Caller::Guest(id, mayfly::domain::GuestRole::Wrapper), false)
        .await
        .unwrap();
    let vm = rig.host.until(id, |vm| vm.drain_until.is_some()).await;
    rig.host.clock.sleep_until(vm.entered_at + jiff::SignedDuration::from_secs(2)).await;
    rig.host.restart().await;
    assert_eq!(rig.host.vm(id).await.state, State::Draining);
    comes_back(&rig).await;
    assert_eq!(rig.says(&jit, "completejob").await.0, 200);
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::RunnerGone));
    assert_eq!(rig.conclusion(job).await, "success");
    rig.assert_clean(&[id]).await;
}

/// Registrations have a limit of their own: what GitHub answers to other questions does not lift it.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_waited_for_until_it_ends() {
    let clock = Clock::manual(jiff::Timestamp::now());
    let rig = Rig::with_clock(3, clock.clone()).await;
    let later = async |seconds: u32| {
        rig.github.advance(seconds.into()).await;
        clock.advance(Duration::from_secs(seconds.into()));
    };
    rig.github.tell("knobs", json!({"registration_limit": 1})).await;
    let first = rig.host.create(wanted(patient())).await;
    rig.idle(first).await;
    let second = rig.host.create(wanted(patient())).await;
    for id in [first, second] {
        rig.host.until(id, |vm| vm.paused_at.is_some()).await;
    }
    later(1800).await;
    assert_eq!(rig.runners().await.len(), 1, "other questions are answered");
    // Something that comes after it has happened.
    let other = rig.host.create(request("linux", RunnerRequest::None)).await;
    rig.host.until_state(other, State::Booting).await;
    let vm = rig.host.vm(second).await;
    assert_eq!((vm.state, vm.attempt, vm.paused_at.is_some()), (State::Cloning, 1, true));
    later(1810).await;
    rig.idle(second).await;
    let ids = [first, second, other];
    for id in ids {
        rig.host.until(id, |vm| vm.paused_at.is_none()).await;
        rig.host.delete(id, true).await;
        rig.host.until_state(id, State::Deleted).await;
    }
    rig.assert_clean(&ids).await;
}

/// A service that has no way to GitHub any more does not wait for it for ever.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_way_to_github_nothing_waits_for_it() {
    let mut rig = Rig::new(1).await;
    let first = rig.host.create(request("linux", RunnerRequest::None)).await;
    rig.host.until(first, |vm| vm.state.holds_slot()).await;
    goes_down(&rig).await;
    let asked = || VmRequest { queue_timeout_seconds: Some(2), ..wanted(patient()) };
    // Somebody else finds out that it is away.
    let second = rig.host.create(asked()).await;
    rig.host.delete(first, true).await;
    rig.host.until(second, |vm| vm.paused_at.is_some()).await;
    let waiting = rig.host.create(asked()).await;
    rig.host.until(waiting, |vm| vm.paused_at.is_some()).await;
    rig.host.sources = Sources::default();
    rig.host.restart().await;
    let ended = rig.host.until_state(second, State::Deleted).await;
    assert_eq!(ended.outcome.unwrap().code, Some(Code::GitHubNotConfigured));
    let ended = rig.host.until_state(waiting, State::Deleted).await;
    assert_eq!(ended.outcome.unwrap().code, Some(Code::GitHubNotConfigured));
}
