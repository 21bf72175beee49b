//! Runners that outlive their vm are removed, and nobody else's.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_runner_is_removed_once_github_lets_go_of_it() {
    let mut rig = Rig::new(1).await;
    rig.github.tell("runners", json!({"place": "orgs/acme", "count": 3, "prefix": "theirs-"})).await;
    let theirs = rig.runners().await;
    let id = rig.host.create(wanted(patient())).await;
    let (vm, _, job) = rig.busy(id).await;
    rig.host.delete(id, true).await;
    rig.host.until_state(id, State::Deleted).await;
    // GitHub believes that the runner is at work: the slot is free, and the row stays.
    rig.github.requests().await;
    let asks = |requests: &[Value]| requests.iter().filter(|r| r["method"] == "DELETE").count();
    rig.until("it is asked again", async || asks(&rig.github.requests().await) >= 1).await;
    let row = rig.rows().await.remove(0);
    assert_eq!((row.runner_id.clone(), row.sealed), (vm.registered.unwrap().runner_id, None));
    let left = rig.host.services().hosts.difference().await.unwrap().runners;
    assert_eq!(
        left.iter().map(|r| (r.vm_id, &r.scope, r.runner_id.clone())).collect::<Vec<_>>(),
        [(id, &acme(), row.runner_id)]
    );
    rig.host.restart().await;
    rig.github.requests().await;
    rig.until("it is asked after a restart", async || asks(&rig.github.requests().await) >= 1).await;
    assert_eq!(rig.runners().await.len(), 4);
    rig.github.advance(601).await;
    rig.until("the row goes", async || rig.rows().await.is_empty()).await;
    assert_eq!(rig.conclusion(job).await, "failure");
    assert_eq!(rig.runners().await, theirs);
    assert_eq!(rig.host.services().hosts.difference().await.unwrap().runners, []);
    rig.host.assert_clean(&[id]).await;
}

/// The service's end, or the network's, came between the question and the answer, and the vm is gone since.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_answer_was_lost_is_found_by_its_name() {
    let rig = Rig::new(1).await;
    assert_eq!(rig.runners().await, Vec::<String>::new(), "who we are is known before anything goes wrong");
    rig.github.fault("generate-jitconfig", json!("lose_reply")).await;
    let down =
        json!([{"method": "GET", "path": "", "times": 100_000, "then": {"answer": {"status": 502, "body": {}}}}]);
    rig.github.tell("faults", down).await;
    let id = rig.host.create(wanted(patient())).await;
    rig.host.until(id, |vm| vm.last_fault.is_some()).await;
    rig.host.delete(id, true).await;
    rig.host.until_state(id, State::Deleted).await;
    assert_eq!(rig.rows().await[0].runner_id, None);
    rig.github.tell("calm", json!({})).await;
    rig.until("it is found and removed", async || rig.rows().await.is_empty()).await;
    assert!(rig.github.requests().await.iter().any(|r| r["method"] == "DELETE"), "there was one");
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_attempt_leaves_nothing() {
    let rig = Rig::new(1).await;
    let id = rig.host.create(wanted(patient())).await;
    rig.given(id).await;
    rig.host.world.end(&id.instance(), GoneCause::GuestPanic);
    rig.host.until(id, |vm| vm.attempt == 2 && vm.registered.is_some()).await;
    rig.until("the first one goes", async || rig.rows().await.len() == 1).await;
    let vm = rig.host.vm(id).await;
    assert_eq!(rig.runners().await, [runner_name(&vm.spec.name, id, 2)]);
    rig.host.delete(id, true).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}
