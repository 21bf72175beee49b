//! A working runner is never removed, and each end of a runner ends its vm.

use super::*;

/// A job whose runner has just taken it, which nothing has reported yet.
async fn taken_unheard(rig: &Rig) -> (u64, VmId, Program<'_>, u64) {
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let program = rig.idle(id).await;
    rig.gitea.tell("hook", json!({"drop": 1000})).await;
    let task = program.fetch().await.unwrap().expect("there is a job for it");
    (job, id, program, task)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delete_of_a_vm_whose_runner_has_a_job_waits_for_the_job() {
    let rig = Rig::with_webhook(1).await;
    let (_, id, program, task) = taken_unheard(&rig).await;
    rig.host.delete(id, false).await;
    // It reports as an idle one: nothing was heard of its task for longer than `busy` looks back.
    rig.gitea.advance(30).await;
    program.declare(&[LABEL]).await.unwrap();
    rig.host.until(id, |vm| vm.runner_status == RunnerStatus::Busy).await;
    program.report(task).await.unwrap();
    program.finish(task, "SUCCESS").await.unwrap();
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.outcome.as_ref().unwrap().result, OutcomeResult::Completed, "{vm:#?}");
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_runner_is_disabled_before_it_is_removed() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&["other"]).await.job;
    let wanted = mayfly::domain::VmRequest::for_pool(&pool(1), mayfly::domain::SourceKind::Gitea, &7.into());
    let id = rig.host.create(wanted).await;
    let program = rig.idle(id).await;
    rig.gitea.requests().await;
    rig.host.delete(id, false).await;
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.runner_status), (Some(EndSignal::Admin), RunnerStatus::Gone));
    let asked = rig.gitea.requests().await;
    let changes: Vec<&str> =
        asked.iter().filter_map(|r| r["method"].as_str()).filter(|m| matches!(*m, "PATCH" | "DELETE")).collect();
    assert_eq!(changes, ["PATCH", "DELETE"]);
    assert!(program.fetch().await.unwrap_err().contains("unregistered runner"));
    rig.gitea.order("cancel", job).await;
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_somebody_removed_ends_its_vm() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let program = rig.idle(id).await;
    let token = rig.gitea.owner_token().await;
    let path = format!("orgs/acme/actions/runners/{}", program.id);
    assert_eq!(rig.gitea.ask("DELETE", &path, Some(&token)).await.0, 204);
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.end_signal, Some(EndSignal::RunnerGone));
    // Its job still waits, and gets another vm.
    rig.gitea.until("another vm", async || rig.vms().await.len() == 2).await;
    rig.gitea.order("cancel", job).await;
    let all: Vec<VmId> = rig.vms().await.iter().map(Vm::id).collect();
    for id in &all {
        rig.host.until_state(*id, State::Deleted).await;
    }
    rig.assert_clean(&all).await;
}

/// Older runners do not end when their job is cancelled while a step sleeps.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_it_runs_ends_its_vm() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let program = rig.idle(id).await;
    rig.busy(id, &program).await;
    rig.gitea.order("cancel", job).await;
    let vm = rig.host.until_state(id, State::Deleted).await;
    let signal = vm.end_signal.unwrap();
    assert!(matches!(signal, EndSignal::JobCompleted | EndSignal::RunnerGone), "{signal:?}");
    assert_eq!(rig.attempt(job, 1).await.unwrap().record.conclusion.as_deref(), Some("cancelled"));
    rig.assert_clean(&[id]).await;
}

/// Gitea gives up the job of a killed runner after a while; until then its row must stay.
#[tokio::test(flavor = "multi_thread")]
async fn the_row_of_a_killed_runner_stays_until_gitea_gives_up_its_job() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let program = rig.idle(id).await;
    rig.busy(id, &program).await;
    rig.host.delete(id, true).await;
    rig.host.until_state(id, State::Deleted).await;
    // Long enough for `busy` to be false, and not for the job.
    rig.gitea.advance(120).await;
    let asked = rig.gitea.count("actions/jobs").await;
    rig.gitea.until("its removal is tried", async || rig.gitea.count("actions/jobs").await > asked + 1).await;
    assert_eq!((rig.rows().await.len(), rig.gitea.busy_deletions().await), (1, 0));
    rig.gitea.advance(3600).await;
    rig.gitea.until("the job is given up", async || rig.attempt(job, 1).await.unwrap().is_over()).await;
    assert_eq!(rig.attempt(job, 1).await.unwrap().record.conclusion.as_deref(), Some("failure"));
    assert_eq!(rig.vms().await.len(), 1, "a job that began is not run again");
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn budgets_stand_still_while_gitea_cannot_be_reached() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    rig.idle(id).await;
    let then = json!({"answer": {"status": 502, "body": "<html>bad gateway</html>"}});
    rig.gitea.tell("faults", json!([{"path": "", "times": 1_000_000, "then": then}])).await;
    rig.host.until(id, |vm| vm.paused_at.is_some()).await;
    rig.gitea.tell("calm", json!({})).await;
    let vm = rig.host.until(id, |vm| vm.paused_at.is_none()).await;
    assert_eq!((vm.state, vm.runner_status), (State::Running, RunnerStatus::Idle));
    rig.gitea.order("cancel", job).await;
    rig.host.until_state(id, State::Deleted).await;
    rig.assert_clean(&[id]).await;
}
