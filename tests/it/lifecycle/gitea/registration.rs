//! Runners are registered when their guests need them, and a lost answer leaves nothing behind.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_gets_the_credentials_of_one_runner_and_no_registration_token() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let given = rig.given.to(id).await;
    let file: Value = serde_json::from_str(&given).unwrap();
    let vm = rig.host.until(id, |vm| vm.registered.is_some()).await;
    let registered = vm.registered.unwrap();
    assert_eq!(
        (file["id"].as_u64().map(Into::into), file["name"].as_str()),
        (registered.runner_id, Some(registered.name.as_str()))
    );
    assert_eq!(file["labels"], json!(["mac:host", "arm64:host"]));
    assert_eq!((&file["address"], &file["ephemeral"]), (&json!(rig.gitea.root), &json!(true)));
    let token = rig.gitea.owner_token().await;
    let (_, _, made) = rig.gitea.ask("POST", "orgs/acme/actions/runners/registration-token", Some(&token)).await;
    assert!(!given.contains(made["token"].as_str().unwrap()));
    rig.gitea.order("cancel", job).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}

/// Gitea registers another runner of the same name each time it is asked.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_registration_was_lost_is_removed() {
    let rig = Rig::with_webhook(1).await;
    rig.gitea.fault("RunnerService/Register", json!("lose_reply")).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let program = rig.idle(id).await;
    let rows = rig.gitea.runners().await;
    let live: Vec<u64> = rows.iter().map(|row| row["id"].as_u64().unwrap()).collect();
    assert_eq!(live, [program.id], "{rows:?}");
    assert_eq!(rig.gitea.state().await["registered"], 2, "one registration and one lost one");
    let task = rig.busy(id, &program).await;
    program.finish(task, "SUCCESS").await.unwrap();
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_registration_fails_the_vm_with_giteas_words() {
    let rig = Rig::with_webhook(1).await;
    let then = json!({"answer": {"status": 403, "body": {"message": "user should be the owner of the repo"}}});
    let fault = json!([{"path": "registration-token", "times": 1_000_000, "then": then}]);
    rig.gitea.tell("faults", fault).await;
    let wanted = mayfly::domain::VmRequest::for_pool(&pool(1), mayfly::domain::SourceKind::Gitea, &7.into());
    let id = rig.host.create(wanted).await;
    let vm = rig.host.until_state(id, State::Deleted).await;
    let outcome = vm.outcome.unwrap();
    assert_eq!((outcome.result, outcome.code), (OutcomeResult::Failed, Some(Code::GiteaRefused)));
    assert!(outcome.detail.unwrap().contains("user should be the owner of the repo"));
    rig.gitea.tell("calm", json!({})).await;
    rig.assert_clean(&[id]).await;
}
