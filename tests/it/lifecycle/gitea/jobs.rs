//! Jobs get vms: by webhooks as they come, and by asking for what they lost.

use mayfly::domain::job::MOST_FAILED_VMS;

use super::*;

/// One job in one vm, from demand to the end.
async fn one_life(rig: &Rig, job: u64, attempt: u32) -> VmId {
    let id = rig.created_vm(job, attempt).await;
    let program = rig.idle(id).await;
    let task = rig.busy(id, &program).await;
    program.finish(task, "SUCCESS").await.unwrap();
    let end = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(end.outcome.as_ref().unwrap().result, OutcomeResult::Completed, "{end:#?}");
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_a_vm_and_the_vm_knows_its_job() {
    let rig = Rig::with_webhook(2).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = one_life(&rig, job, 1).await;
    rig.gitea.until("the job's end is heard of", async || rig.attempt(job, 1).await.unwrap().is_over()).await;
    let known = rig.attempt(job, 1).await.unwrap();
    let vm = rig.host.vm(id).await;
    assert_eq!(vm.jobs, std::slice::from_ref(&known.record));
    let record = &known.record;
    assert_eq!((&record.source, record.repository.as_str(), record.run_attempt), (&forge(), "acme/app", 1));
    assert_eq!((record.conclusion.as_deref(), known.vm, known.tries), (Some("success"), Some(id), 1));
    // Gitea writes 1970 for a time that is not set.
    assert!(record.started_at.is_some_and(|at| at.as_second() > 0));
    assert!(record.url.as_ref().unwrap().contains("/acme/app/actions/runs/"));
    let Registered { runner_id, name } = vm.registered.unwrap();
    assert!(runner_id.is_some() && known.runner_name.as_deref() == Some(name.as_str()));
    assert_eq!(rig.vms().await.len(), 1, "one vm for one job");
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_poll_finds_what_webhooks_missed() {
    let rig = Rig::new(2, Duration::from_millis(100)).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    // Of another organisation, of labels in another case, and waiting for another job.
    rig.gitea.tell("orgs", json!({"name": "other", "owners": ["someone"]})).await;
    rig.gitea.tell("repos", json!({"full_name": "other/app"})).await;
    rig.gitea.job_with(json!({"labels": [LABEL], "repository": "other/app"})).await;
    rig.gitea.job(&["MAC"]).await;
    rig.gitea.job_with(json!({"labels": [LABEL], "waiting": true})).await;
    let id = one_life(&rig, job, 1).await;
    rig.gitea.until("the job's end is heard of", async || rig.attempt(job, 1).await.unwrap().is_over()).await;
    assert_eq!(rig.attempt(job, 1).await.unwrap().record.conclusion.as_deref(), Some("success"));
    assert_eq!(rig.vms().await.len(), 1);
    assert!(rig.all_jobs().await.iter().all(|job| job.record.repository == "acme/app"));
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_run_again_keeps_its_id_and_gets_another_vm() {
    for poll in [NEVER, Duration::from_millis(100)] {
        let rig = if poll == NEVER { Rig::with_webhook(2).await } else { Rig::new(2, poll).await };
        let job = rig.gitea.job(&[LABEL]).await.job;
        let first = one_life(&rig, job, 1).await;
        rig.gitea.until("the first end is heard of", async || rig.attempt(job, 1).await.unwrap().is_over()).await;
        rig.gitea.order("rerun", job).await;
        let second = one_life(&rig, job, 2).await;
        rig.gitea.until("the second end is heard of", async || rig.attempt(job, 2).await.unwrap().is_over()).await;
        assert_ne!(first, second);
        let vms = [rig.attempt(job, 1).await.unwrap().vm, rig.attempt(job, 2).await.unwrap().vm];
        assert_eq!(vms, [Some(first), Some(second)]);
        assert_eq!((rig.all_jobs().await.len(), rig.vms().await.len()), (2, 2));
        rig.assert_clean(&[first, second]).await;
    }
}

/// The webhooks of the first attempt's end and of the second one's begin are lost: then the server shows another attempt.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_end_was_missed_is_over_when_the_next_one_is_seen() {
    let mut rig = Rig::with_webhook(2).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = rig.created_vm(job, 1).await;
    let given = rig.given.to(id).await;
    let program = rig.idle(id).await;
    let task = rig.busy(id, &program).await;
    rig.host.crash().await;
    let program = rig.gitea.program(&given);
    program.finish(task, "SUCCESS").await.unwrap();
    rig.gitea.order("rerun", job).await;
    rig.host.sources = [(forge(), source(&rig.gitea, Duration::from_millis(100)).await)].into_iter().collect();
    rig.host.start().await;
    let second = one_life(&rig, job, 2).await;
    rig.gitea.until("the first attempt is over", async || rig.attempt(job, 1).await.unwrap().is_over()).await;
    rig.host.until_state(id, State::Deleted).await;
    assert_eq!(rig.vms().await.len(), 2);
    rig.assert_clean(&[id, second]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_of_two_levels_and_doubled_ones_make_no_difference() {
    let rig = Rig::with_webhook(2).await;
    rig.hook("repos/acme/app").await;
    rig.hook("system").await;
    rig.gitea.tell("hook", json!({"duplicate": 1000})).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let id = one_life(&rig, job, 1).await;
    assert_eq!(rig.vms().await.len(), 1);
    rig.assert_clean(&[id]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_its_vm_waits_frees_it() {
    let rig = Rig::with_webhook(1).await;
    let first = rig.gitea.job(&[LABEL]).await.job;
    let idle = rig.created_vm(first, 1).await;
    rig.idle(idle).await;
    let second = rig.gitea.job(&[LABEL]).await.job;
    let queued = rig.created_vm(second, 1).await;
    assert_eq!(rig.host.vm(queued).await.state, State::Queued);
    rig.gitea.order("cancel", second).await;
    let vm = rig.host.until_state(queued, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.announced_by, vm.attempt), (Some(EndSignal::Pool), Some(Announcer::Pool), 0));
    // An idle one goes as well: its runner gets no more jobs before its guest is destroyed.
    rig.gitea.order("cancel", first).await;
    let vm = rig.host.until_state(idle, State::Deleted).await;
    assert_eq!((vm.end_signal, vm.runner_status), (Some(EndSignal::Pool), RunnerStatus::Gone));
    rig.assert_clean(&[idle, queued]).await;
}

/// A guest whose runner ends at once never takes the job: it is followed by some others, and then by none.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_whose_vms_end_without_it_is_given_up_and_says_why() {
    let rig = Rig::with_webhook(1).await;
    let job = rig.gitea.job(&[LABEL]).await.job;
    let mut seen = Vec::new();
    for _ in 0..MOST_FAILED_VMS {
        let newest = async || rig.attempt(job, 1).await.and_then(|job| job.created_vm).filter(|id| !seen.contains(id));
        rig.gitea.until("another vm for the job", async || newest().await.is_some()).await;
        let id = newest().await.unwrap();
        seen.push(id);
        rig.idle(id).await;
        let report = mayfly::service::guests::GuestEvent::RunnerFinished { exit_code: 0 };
        rig.host.services().guests.report(id, report).await.unwrap();
        rig.host.until_state(id, State::Deleted).await;
    }
    rig.gitea.until("it is given up", async || rig.attempt(job, 1).await.unwrap().is_given_up()).await;
    let known = rig.attempt(job, 1).await.unwrap();
    assert_eq!((known.failed_vms, known.tries), (MOST_FAILED_VMS, MOST_FAILED_VMS));
    assert!(known.waits());
    assert_eq!(rig.vms().await.len(), seen.len());
    rig.assert_clean(&seen).await;
}
