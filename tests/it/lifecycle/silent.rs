//! Guests whose wrapper falls silent, and guests that report that they cannot go on.

use std::time::{Duration, Instant};

use mayfly::{
    domain::{BudgetsPatch, VmId, VmRequest},
    service::guests::GuestEvent,
};

use super::{away::boots, prelude::*};

async fn running(host: &Host, separate_users: Option<bool>) -> VmId {
    let budgets = BudgetsPatch { heartbeat_seconds: Some(2), ..BudgetsPatch::default() };
    let id = host.create(VmRequest { budgets, ..request("linux", job()) }).await;
    boots(host, id).await;
    for report in [GuestEvent::GuestConfigured { attempt: Some(1), separate_users }, GuestEvent::JobStarted {}] {
        host.services().guests.report(id, report).await.unwrap();
    }
    host.until_state(id, State::Running).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_wrapper_ends_its_vm_within_the_heartbeat_budget() {
    let mut host = Host::new(4, 2).await;
    let id = running(&host, Some(false)).await;
    let begun = Instant::now();
    let mut last = begun;
    // Longer than the budget.
    while begun.elapsed() < Duration::from_secs(5) {
        assert_eq!(host.vm(id).await.state, State::Running, "ended {:?} after a heartbeat", last.elapsed());
        host.services().guests.report(id, GuestEvent::Heartbeat {}).await.unwrap();
        last = Instant::now();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The job's token is no sign of life of the wrapper; and a restart gives the guest its whole time again.
    host.services().guests.report_of_job(id, GuestEvent::JobStarted {}).await.unwrap();
    host.crash().await;
    host.start().await;
    let end = host.until_state(id, State::Deleted).await;
    assert!(last.elapsed() > Duration::from_secs(2), "{:?}", last.elapsed());
    assert_eq!(end.end_signal, Some(EndSignal::HeartbeatBudget));
    let outcome = end.outcome.unwrap();
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Failed, Some(Code::GuestSilent)));
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_sends_no_heartbeats_is_not_expected_to() {
    let host = Host::new(4, 2).await;
    let (old, new) = (running(&host, None).await, running(&host, Some(true)).await);
    host.until_state(new, State::Deleted).await;
    assert_eq!(host.vm(old).await.state, State::Running);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_go_on_ends_its_attempt_with_its_own_words() {
    let host = Host::new(4, 2).await;
    let failed = |attempt: u32, is_final: bool| GuestEvent::GuestFailed {
        attempt,
        detail: "no user runner\nin this guest".into(),
        is_final,
        check_failed: false,
    };
    let booting = async || {
        let id = host.create(request("linux", job())).await;
        boots(&host, id).await;
        id
    };
    // A fresh clone may do better.
    let id = booting().await;
    host.services().guests.report(id, failed(1, false)).await.unwrap();
    let vm = host.until(id, |vm| vm.failed_attempts == 1).await;
    let fault = vm.last_fault.unwrap();
    assert_eq!(
        (fault.code, fault.detail.as_str()),
        (Code::GuestFailed, "the guest said: no user runner in this guest")
    );
    host.until(id, |vm| vm.attempt == 2 && vm.state == State::Booting).await;
    // A report of the first guest that comes late.
    host.services().guests.report(id, failed(1, true)).await.unwrap();
    assert_eq!(host.vm(id).await.outcome, None);
    host.services().guests.report(id, failed(2, true)).await.unwrap();
    let end = host.until_state(id, State::Deleted).await;
    assert_eq!((end.attempt, end.outcome.unwrap().code), (2, Some(Code::JobUnusable)));

    // After the job's start there is no other attempt.
    let id = running(&host, Some(true)).await;
    host.services().guests.report(id, failed(1, false)).await.unwrap();
    let end = host.until_state(id, State::Deleted).await;
    let outcome = end.outcome.unwrap();
    assert_eq!((end.attempt, outcome.result, outcome.code), (1, OutcomeResult::Failed, Some(Code::GuestFailed)));
    let long = GuestEvent::GuestFailed { attempt: 1, detail: "x".repeat(1001), is_final: false, check_failed: false };
    assert_eq!(host.services().guests.report(id, long).await.unwrap_err().code, Code::RequestInvalid);
}
