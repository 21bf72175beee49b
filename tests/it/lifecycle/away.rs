//! No job runs twice and none is given up because the service was away: a guest starts its job when it was told that it may,
//! and the time in which nobody could tell it costs nothing.

use std::time::Duration;

use jiff::Timestamp;
use mayfly::{
    domain::{RunnerStatus, VmId, runner::RunnerStarted},
    drivers::Observation,
    platform::Clock,
    service::guests::GuestEvent,
};
use tokio::sync::watch;

use super::prelude::*;

const BOOT: Duration = Duration::from_secs(300);

fn clock() -> Clock {
    Clock::manual(Timestamp::from_second(1_800_000_000).unwrap())
}

/// Guests that are simulated once they are let go.
pub fn held_back(host: &Host) -> watch::Sender<bool> {
    let go = watch::Sender::new(false);
    let (serving, hush, going) = (host.serving.clone(), host.hush.clone(), go.clone());
    host.world.on_boot(move |guest| {
        let (serving, hush, mut going) = (serving.clone(), hush.clone(), going.subscribe());
        tokio::spawn(async move {
            going.wait_for(|go| *go).await.unwrap();
            super::play(serving, hush, guest).await;
        });
    });
    go
}

/// Returns once the service has written that it was here at the present time of its clock.
pub async fn heartbeat(host: &Host) {
    let now = host.clock.now().as_millisecond();
    let written = async {
        let wall = |text: String| text.split_whitespace().next().and_then(|ms| ms.parse::<i64>().ok());
        while std::fs::read_to_string(host.at("heartbeat")).ok().and_then(wall) != Some(now) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(super::PATIENCE, written).await.expect("no heartbeat");
}

pub async fn boots(host: &Host, id: VmId) {
    let running = |seen: &Observation| matches!(seen, Observation::Running { .. });
    let name = id.instance();
    let boots = host.world.until(|world| world.instances.get(name.as_str()).is_some_and(running));
    tokio::time::timeout(super::PATIENCE, boots).await.expect("the guest does not boot");
    host.until_state(id, State::Booting).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn downtime_does_not_count_against_the_boot_budget() {
    let mut host = Host::with_clock(1, 0, clock()).await;
    let go = held_back(&host);
    let id = host.create(request("linux", job())).await;
    boots(&host, id).await;
    // A third of the budget, then much more than all of it without a service, and another third.
    host.clock.advance(BOOT / 3);
    host.crash().await;
    host.clock.advance(10 * BOOT);
    host.start().await;
    host.until(id, |vm| vm.away_ms > 0).await;
    host.clock.advance(BOOT / 3);
    let vm = host.vm(id).await;
    assert_eq!((vm.state, vm.attempt, vm.failed_attempts), (State::Booting, 1, 0), "{vm:#?}");
    go.send_replace(true);
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!((vm.attempt, vm.outcome.as_ref().unwrap().result), (1, OutcomeResult::Completed), "{vm:#?}");
    assert_eq!((host.world.snapshot().starts, vm.started()), (1, RunnerStarted::Yes));
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_goes_on_when_the_service_is_back() {
    let mut host = Host::with_clock(1, 0, clock()).await;
    let go = held_back(&host);
    let id = host.create(request("linux", job())).await;
    boots(&host, id).await;
    host.clock.advance(BOOT / 2);
    heartbeat(&host).await;
    host.crash().await;
    host.clock.advance(BOOT);
    host.start().await;
    host.until(id, |vm| vm.away_ms > 0).await;
    host.clock.advance(BOOT / 2 + Duration::from_secs(1));
    // The guest of the first attempt was not told that it may start anything, and is not told so now.
    let vm = host.until(id, |vm| vm.failed_attempts == 1 && vm.state == State::Queued).await;
    assert_eq!((vm.last_fault.unwrap().code, vm.outcome), (Code::GuestNotReady, None));
    host.clock.advance(Duration::from_secs(1));
    go.send_replace(true);
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!((vm.attempt, vm.outcome.as_ref().unwrap().result), (2, OutcomeResult::Completed), "{vm:#?}");
    host.assert_clean(&[id]).await;
}

/// Its clone is not booted again: what it did the first time would be done twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ended_during_downtime_is_not_booted_again() {
    let mut host = Host::new(1, 0).await;
    let go = held_back(&host);
    let id = host.create(request("linux", job())).await;
    boots(&host, id).await;
    host.crash().await;
    assert!(host.world.end(&id.instance(), GoneCause::GuestPowerOff));
    go.send_replace(true);
    host.start().await;
    let vm = host.until_state(id, State::Deleted).await;
    // A fresh clone, because the first guest was never allowed to start its job.
    assert_eq!((vm.attempt, vm.outcome.as_ref().unwrap().result), (2, OutcomeResult::Completed), "{vm:#?}");
    assert_eq!(vm.last_fault.as_ref().unwrap().code, Code::GuestEndedEarly);
    let snapshot = host.world.snapshot();
    assert_eq!((snapshot.starts, snapshot.calls(Verb::Create)), (2, 2));
    host.assert_clean(&[id]).await;
}

async fn reports(host: &Host, id: VmId, attempt: u32) -> Result<(), Code> {
    let report = GuestEvent::GuestConfigured { attempt: Some(attempt), separate_users: None };
    host.services().guests.report(id, report).await.map_err(|error| error.code)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_guest_of_this_attempt_may_start_its_job_and_only_while_the_vm_is_not_ending() {
    let mut host = Host::new(1, 0).await;
    let id = host.create(request("linux", job())).await;
    boots(&host, id).await;
    for other in [0, 2] {
        assert_eq!(reports(&host, id, other).await, Err(Code::AttemptOver));
    }
    assert_eq!(host.vm(id).await.started(), RunnerStarted::No);
    // As often as it is asked, before and after a restart.
    reports(&host, id, 1).await.unwrap();
    let vm = host.vm(id).await;
    assert_eq!((vm.state, vm.started()), (State::Running, RunnerStarted::Maybe));
    host.restart().await;
    reports(&host, id, 1).await.unwrap();
    assert_eq!(reports(&host, id, 2).await, Err(Code::AttemptOver));
    // Who asks only now has not begun, and shall not.
    host.delete(id, false).await;
    assert_eq!(host.vm(id).await.state, State::Draining, "its job may have begun");
    assert_eq!(reports(&host, id, 1).await, Err(Code::AttemptOver));
    host.delete(id, true).await;
    host.until_state(id, State::Deleted).await;
    assert_eq!(reports(&host, id, 1).await, Err(Code::AttemptOver));
    host.assert_clean(&[id]).await;
}

/// A guest that came up unheard works for a job only if the service knows; so a DELETE of it ends nothing that works.
#[tokio::test(flavor = "multi_thread")]
async fn a_delete_before_the_job_may_start_ends_the_vm_and_the_guest_learns_it() {
    let host = Host::new(1, 0).await;
    let id = host.create(request("linux", job())).await;
    boots(&host, id).await;
    host.delete(id, false).await;
    assert_eq!(reports(&host, id, 1).await, Err(Code::AttemptOver));
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!((vm.outcome.as_ref().unwrap().result, vm.started()), (OutcomeResult::Cancelled, RunnerStarted::No));
    host.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_ended_after_it_might_have_started_is_not_replaced_and_the_record_says_so() {
    let mut host = Host::new(1, 0).await;
    for (confirmed, started) in [(false, RunnerStarted::Maybe), (true, RunnerStarted::Yes)] {
        let id = host.create(request("linux", job())).await;
        boots(&host, id).await;
        reports(&host, id, 1).await.unwrap();
        if confirmed {
            // What it says of its log shows as much as what it says of itself.
            let log =
                GuestEvent::Log { source: mayfly::service::guests::GuestLog::Job, data_base64: "aGVsbG8K".into() };
            host.services().guests.report(id, log).await.unwrap();
        }
        host.crash().await;
        host.world.end(&id.instance(), GoneCause::GuestPowerOff);
        host.start().await;
        let vm = host.until_state(id, State::Deleted).await;
        let ended = (vm.attempt, vm.outcome.as_ref().unwrap().result, vm.started());
        assert_eq!(ended, (1, OutcomeResult::Lost, started), "{vm:#?}");
        assert_eq!(vm.end_signal, Some(EndSignal::GuestPowerOff));
        host.assert_clean(&[id]).await;
    }
}

/// The guest of an older version started its job without asking, and both of its first reports were lost.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_guest_says_shows_that_it_is_there() {
    let host = Host::new(1, 0).await;
    let log = |source| GuestEvent::Log { source, data_base64: "aGVsbG8K".into() };
    use mayfly::service::guests::GuestLog;
    for (report, state, status) in [
        (log(GuestLog::Boot), State::Configuring, RunnerStatus::None),
        (log(GuestLog::Job), State::Running, RunnerStatus::Registering),
        (GuestEvent::JobStarted {}, State::Running, RunnerStatus::Busy),
        (GuestEvent::JobResult { exit_code: 0 }, State::Running, RunnerStatus::Registering),
    ] {
        let id = host.create(request("linux", job())).await;
        boots(&host, id).await;
        host.services().guests.report(id, report.clone()).await.unwrap();
        let vm = host.vm(id).await;
        assert_eq!((vm.state, vm.runner_status), (state, status), "{report:?}");
        host.delete(id, true).await;
        host.until_state(id, State::Deleted).await;
    }
    let id = host.create(request("linux", job())).await;
    boots(&host, id).await;
    host.services()
        .vms
        .end(id, &mayfly::domain::token::Caller::Guest(id, mayfly::domain::GuestRole::Wrapper), false)
        .await
        .unwrap();
    let vm = host.vm(id).await;
    assert_eq!((vm.state, vm.announced_by), (State::Draining, Some(mayfly::domain::Announcer::Hook)));
    assert!(vm.timeline.iter().any(|entry| entry.state == State::Running), "{vm:#?}");
    host.delete(id, true).await;
    host.until_state(id, State::Deleted).await;
}
