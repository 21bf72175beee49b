//! From the registration to the runner's work.

use mayfly::domain::{RunnerStatus, event::EndProof};

use super::*;

/// Nothing is heard from the guest at all: GitHub's word alone leads the vm through its life.
#[tokio::test(flavor = "multi_thread")]
async fn github_leads_a_vm_through_its_life() {
    let rig = Rig::new(1).await;
    let id = rig.host.create(wanted(patient())).await;
    let (vm, jit) = rig.idle(id).await;
    let registered = vm.registered.clone().unwrap();
    assert_eq!(rig.runners().await, std::slice::from_ref(&registered.name));
    let row = rig.rows().await.remove(0);
    assert_eq!((row.runner_id.clone(), row.attempt, &row.sealed), (registered.runner_id, 1, &None));
    assert!(row.seen_at.is_some());

    let job = rig.job().await;
    rig.host.until(id, |vm| vm.runner_status == RunnerStatus::Busy).await;
    rig.host
        .services()
        .vms
        .end(id, &mayfly::domain::token::Caller::Guest(id, mayfly::domain::GuestRole::Wrapper), false)
        .await
        .unwrap();
    rig.host.until_state(id, State::Draining).await;
    for what in ["log", "completejob"] {
        assert_eq!(rig.says(&jit, what).await.0, 200);
    }
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.outcome.unwrap().result), (Some(EndSignal::RunnerGone), OutcomeResult::Completed));
    assert_eq!(vm.end_proof.unwrap().0, EndProof::RunnerGone);
    assert_eq!(rig.conclusion(job).await, "success");
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_runner_is_registered_while_a_vm_is_queued() {
    let rig = Rig::new(1).await;
    let first = rig.host.create(wanted(patient())).await;
    rig.idle(first).await;
    let second = rig.host.create(wanted(patient())).await;
    rig.host.until(second, |vm| vm.queue.as_ref().is_some_and(|q| q.reason == QueueReason::Slot)).await;
    assert_eq!((rig.runners().await.len(), rig.rows().await.len()), (1, 1));
    rig.host.delete(first, false).await;
    rig.host.until_state(first, State::Deleted).await;
    rig.idle(second).await;
    rig.host.delete(second, false).await;
    rig.host.until_state(second, State::Deleted).await;
    rig.assert_clean(&[first, second]).await;
}

/// It was done and the answer was lost, cut off, or refused as taken: there is one runner all the same, and it works.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_answer_is_made_good() {
    let rig = Rig::new(1).await;
    let taken = json!({"answer": {"status": 409, "body": {"message": "Already exists"}}});
    for then in [json!("lose_reply"), json!("truncate"), taken, json!("drop")] {
        rig.github.fault("generate-jitconfig", then.clone()).await;
        let id = rig.host.create(wanted(patient())).await;
        let (vm, jit) = rig.idle(id).await;
        assert_eq!(vm.attempt, 1, "{then}: {vm:#?}");
        assert_eq!(rig.runners().await, [vm.registered.unwrap().name], "{then}");
        rig.job().await;
        assert_eq!(rig.says(&jit, "completejob").await.0, 200);
        rig.host.until_state(id, State::Deleted).await;
        rig.assert_clean(&[id]).await;
    }
}

/// A stranger's runner has the name and is at work: it is left alone, and another attempt has another name.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_with_the_same_name_is_left_alone() {
    let rig = Rig::new(1).await;
    let first = rig.host.create(request("linux", RunnerRequest::None)).await;
    rig.host.until(first, |vm| vm.state.holds_slot()).await;
    let id = rig.host.create(wanted(patient())).await;
    let theirs = runner_name(&rig.host.vm(id).await.spec.name, id, 1);
    // The last digit is the double's.
    let prefix = theirs.strip_suffix('1').unwrap();
    rig.github.tell("runners", json!({"place": "orgs/acme", "count": 2, "prefix": prefix})).await;
    let stranger = rig.client.find_runner_by_name(&acme(), &theirs).await.unwrap().unwrap();
    rig.github.tell(&format!("runner/{}", stranger.id), json!({"online": true})).await;

    rig.host.delete(first, true).await;
    let (vm, _) = rig.idle(id).await;
    assert_eq!((vm.attempt, vm.failed_attempts), (2, 1));
    assert_eq!(vm.last_fault.unwrap().code, Code::GitHubRefused);
    rig.host.delete(id, false).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.until("rows of runners go", async || rig.rows().await.is_empty()).await;
    let left = rig.client.get_runner(&acme(), stranger.id).await.unwrap();
    assert_eq!(left.map(|r| r.name), Some(theirs));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_github_refuses_ends_the_vm_with_its_words() {
    let rig = Rig::new(1).await;
    let mut ids = Vec::new();
    for (scope, group, says) in
        [("acme/none", None, "shows nothing"), ("acme", Some("blue"), "no runner group \"blue\"")]
    {
        let mut asked = wanted(patient());
        let RunnerRequest::GitHub { scope: at, group: of, .. } = &mut asked.runner else { unreachable!() };
        *at = scope.parse().unwrap();
        *of = group.map(str::to_owned);
        let id = rig.host.create(asked).await;
        let vm = rig.host.until_state(id, State::Deleted).await;
        let outcome = vm.outcome.unwrap();
        assert_eq!((outcome.result, outcome.code), (OutcomeResult::Failed, Some(Code::GitHubRefused)), "{scope}");
        assert!(outcome.detail.as_ref().unwrap().contains(says), "{outcome:?}");
        ids.push(id);
    }
    rig.assert_clean(&ids).await;
}

/// One life per commit, each stopped right after that commit and started again, until a life has no more commits: one runner is
/// given one job, whose result is there, and nothing is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_after_every_commit_has_the_same_end() {
    let mut rig = Rig::new(1).await;
    let mut stops = Stops::default();
    for after in 1.. {
        rig.host.hush.send_replace(after);
        let id = rig.host.create(wanted(patient())).await;
        let lives = {
            let (github, given, serving) = (rig.github.clone(), rig.given.clone(), rig.host.serving.clone());
            let hush = rig.host.hush.clone();
            tokio::spawn(async move {
                let jit = given.to(id).await;
                let jit = json!({"jit": jit});
                may_speak(&serving, &hush, id).await;
                github.tell("session/connect", jit.clone()).await;
                let registering = [RunnerStatus::None, RunnerStatus::Registering];
                known(&serving, id, |vm| !registering.contains(&vm.runner_status)).await;
                may_speak(&serving, &hush, id).await;
                let job = github.tell("jobs", json!({"repository": "acme/app", "labels": [LABEL]})).await;
                github.tell("dispatch", json!({})).await;
                // Seen at work by Mayfly, before or after its restart: the job is not over before that.
                known(&serving, id, |vm| vm.runner_status != RunnerStatus::Idle).await;
                may_speak(&serving, &hush, id).await;
                github.tell("session/completejob", jit).await;
                job["id"].as_u64().unwrap()
            })
        };
        let reached = rig.host.until_commit(id, after).await;
        let whole = reached.generation < after;
        stops.add(rig.host.last_commit(&reached).await);
        rig.host.restart().await;
        rig.host.hush.send_replace(i64::MAX);
        let end = rig.host.until_state(id, State::Deleted).await;
        assert_eq!(end.outcome.as_ref().map(|o| o.result), Some(OutcomeResult::Completed), "{after}: {end:#?}");
        assert_eq!(end.attempt, 1, "{after}: {end:#?}");
        assert_eq!(rig.conclusion(lives.await.unwrap()).await, "success", "{after}");
        rig.assert_clean(&[id]).await;
        if whole {
            break;
        }
        assert!(after < 100, "a life does not end: {end:#?}");
    }
    // Where the service waits for its guest or for GitHub, the stop is exactly there.
    stops.assert_covers(&[(State::Booting, EventKind::Cloned), (State::Running, EventKind::RunnerChanged)]);
}

/// Mayfly dies right before GitHub is asked, right after it was, and right after it answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_was_interrupted_is_taken_up_again() {
    let mut rig = Rig::new(1).await;
    assert_eq!(rig.runners().await, Vec::<String>::new(), "who we are is known before anything goes wrong");
    let away = json!({"answer": {"status": 503, "body": {"message": "away"}}});
    for then in [away, json!("lose_reply")] {
        // Until the restart, nothing else of GitHub answers either: what was asked for stays unknown.
        rig.github.fault("generate-jitconfig", then.clone()).await;
        let down = json!([{"path": "", "times": 100_000, "then": {"answer": {"status": 503, "body": {}}}}]);
        rig.github.tell("faults", down).await;
        let id = rig.host.create(wanted(patient())).await;
        rig.until("GitHub is asked", async || !rig.rows().await.is_empty()).await;
        rig.host.until(id, |vm| vm.last_fault.is_some()).await;
        assert_eq!(rig.rows().await[0].runner_id, None);
        rig.host.restart().await;
        rig.github.tell("calm", json!({})).await;
        let (vm, _) = rig.idle(id).await;
        assert_eq!((vm.attempt, rig.runners().await.len()), (1, 1), "{then}");
        rig.host.delete(id, false).await;
        rig.host.until_state(id, State::Deleted).await;
        rig.assert_clean(&[id]).await;
    }
}
