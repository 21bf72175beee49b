//! Mayfly dies before, in the middle of and after every side effect: the next start comes to the same end.

use mayfly::domain::{Vm, end::OutcomeResult::Completed};

use super::prelude::*;

async fn dies_in(verb: Verb, crash: Crash) -> Vm {
    let mut host = Host::new(1, 0).await;
    host.play_guests();
    host.world.crash_next(verb, crash);
    let id = host.create(request("linux", job())).await;
    let next = host.create(request("linux", job())).await;
    tokio::time::timeout(super::PATIENCE, host.world.until(|s| s.crashes == 1))
        .await
        .expect("the crash point was not reached");
    host.restart().await;
    let end = host.until_state(id, State::Deleted).await;
    host.until_state(next, State::Deleted).await;
    assert_eq!(host.world.peak(), 1, "two guests on one slot");
    assert_eq!(host.world.snapshot().starts, 2, "each vm was started once");
    host.assert_clean(&[id, next]).await;
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn every_side_effect_has_the_same_end() {
    let mut points = 0;
    for verb in [Verb::Create, Verb::Start, Verb::Stop, Verb::Destroy] {
        for crash in [Crash::Before, Crash::Halfway, Crash::After] {
            let end = dies_in(verb, crash).await;
            assert_eq!(end.outcome.as_ref().map(|o| o.result), Some(Completed), "{verb:?} {crash:?}: {end:#?}");
            assert_eq!((end.attempt, end.job_exit_code), (1, Some(0)), "{verb:?} {crash:?}");
            points += 1;
        }
    }
    assert_eq!(points, 12);
}

/// One life per commit, each stopped right after that commit and started again, until a life has no more commits.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_every_commit_has_the_same_end() {
    let mut stops = super::Stops::default();
    for after in 1.. {
        let mut host = Host::new(1, 0).await;
        host.play_guests();
        host.hush.send_replace(after);
        let id = host.create(request("linux", job())).await;
        let reached = host.until_commit(id, after).await;
        let whole = reached.generation < after;
        stops.add(host.last_commit(&reached).await);
        host.restart().await;
        host.hush.send_replace(i64::MAX);
        let end = host.until_state(id, State::Deleted).await;
        assert_eq!(end.outcome.as_ref().map(|o| o.result), Some(Completed), "after commit {after}: {end:#?}");
        host.assert_clean(&[id]).await;
        if whole {
            break;
        }
        assert!(after < 100, "a life does not end: {end:#?}");
    }
    // Where the service waits for its guest, the stop is exactly there. Between its own steps it may be a little later; those
    // are the points above.
    stops.assert_covers(&[
        (State::Booting, EventKind::Cloned),
        (State::Configuring, EventKind::GuestReady),
        (State::Running, EventKind::GuestConfigured),
        (State::Running, EventKind::RunnerChanged),
        (State::Draining, EventKind::EndAnnounced),
        (State::Draining, EventKind::JobFinished),
        (State::Deleted, EventKind::InstanceAbsent),
    ]);
}

/// A vm that ran when Mayfly died and is gone when it comes back is lost, and its slot is free.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_vanished_meanwhile_is_lost_and_its_slot_is_free() {
    let mut host = Host::new(1, 0).await;
    let serving = host.serving.clone();
    host.world.on_boot(move |guest| {
        let serving = serving.clone();
        tokio::spawn(async move {
            let id = mayfly::domain::InstanceName::parse(guest.spec.name.as_str()).unwrap();
            let configured =
                mayfly::service::guests::GuestEvent::GuestConfigured { attempt: None, separate_users: None };
            super::tell(&serving, id, super::Report::Event(configured)).await;
        });
    });
    let id = host.create(request("linux", job())).await;
    host.until_state(id, State::Running).await;
    host.crash().await;
    host.world.vanish(&id.instance());
    host.start().await;
    let vm = host.until_state(id, State::Deleted).await;
    assert_eq!(vm.outcome.unwrap().result, OutcomeResult::Lost);
    host.assert_clean(&[id]).await;
}
