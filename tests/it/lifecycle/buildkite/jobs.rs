//! Jobs get vms, each its own.

use mayfly::domain::{RemoteId, job::MOST_FAILED_VMS};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_job_gets_a_vm_and_the_vm_knows_its_job() {
    let rig = Rig::new(2).await;
    rig.fate(&[Fate::Begins]);
    let job = rig.buildkite.job(&["queue=macs", "os=*"]).await;
    // No pool takes it: it stays for another stack.
    let other = rig.buildkite.job(&["os=linux"]).await;
    let id = rig.created_vm(&job).await;
    let vm = rig.host.until(id, |vm| !vm.jobs.is_empty()).await;
    assert_eq!((vm.state, vm.runner_status), (State::Running, RunnerStatus::Busy));
    let registered = vm.registered.as_ref().unwrap();
    assert_eq!(registered.runner_id, Some(RemoteId::Text(job.clone())));
    let known = rig.known(&job).await.unwrap();
    assert_eq!((known.vm, known.tries, known.status()), (Some(id), 1, JobStatus::InProgress));
    assert_eq!(vm.jobs, std::slice::from_ref(&known.record));
    assert_eq!((known.record.repository.as_str(), known.record.run_id), ("acme/app", 7));
    // No secret is in clear in the database.
    for file in ["mayfly.db", "mayfly.db-wal"] {
        let bytes = std::fs::read(rig.host.at(file)).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&bytes).contains("bkjat_")
                && !String::from_utf8_lossy(&bytes).contains(&rig.token)
        );
    }
    rig.buildkite.cancel(&job).await;
    assert_eq!(rig.buildkite.job_state(&job).await["state"], "canceling");
    rig.host.delete(id, true).await;
    // Its agent is silent from now on, and Buildkite ends its job.
    rig.buildkite.tell("knobs", json!({"lost_seconds": 0})).await;
    rig.until_over(&job).await;
    assert_eq!(rig.buildkite.job_state(&other).await["state"], "scheduled");
    assert_eq!(rig.known(&other).await.unwrap().pool, None);
    rig.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_a_paused_queue_get_their_vms_when_it_is_resumed() {
    let rig = Rig::new(2).await;
    rig.buildkite.pause(true).await;
    let job = rig.buildkite.job(&[]).await;
    let heard = async || rig.known(&job).await.is_some_and(|job| job.status() == JobStatus::Waiting);
    rig.buildkite.until("the job is heard of", heard).await;
    rig.buildkite.requests().await;
    let listed = async || {
        let asked = rig.buildkite.requests().await;
        asked.iter().filter(|r| r["path"].as_str().unwrap().ends_with("scheduled-jobs")).count() > 0
    };
    for _ in 0..3 {
        rig.buildkite.until("another poll", listed).await;
    }
    assert_eq!((rig.vms().await.len(), rig.buildkite.job_state(&job).await["state"].clone()), (0, json!("scheduled")));
    rig.buildkite.pause(false).await;
    rig.until_job(&job, "finished").await;
    rig.until_over(&job).await;
    rig.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_cancelled_while_its_vm_waits_ends_the_vm_and_no_other() {
    let rig = Rig::new(1).await;
    rig.fate(&[Fate::Idles]);
    let first = rig.buildkite.job(&[]).await;
    let idle = rig.created_vm(&first).await;
    rig.host.until(idle, |vm| vm.registered.is_some()).await;
    let second = rig.buildkite.job(&[]).await;
    let queued = rig.created_vm(&second).await;
    rig.buildkite.cancel(&first).await;
    let vm = rig.host.until_state(idle, State::Deleted).await;
    assert_eq!((vm.announced_by, vm.jobs.len()), (Some(Announcer::Pool), 0));
    let end = rig.until_job(&second, "finished").await;
    assert_eq!((&end["starts"], &end["end"]["by"]), (&json!(1), &json!("agent")));
    assert_eq!(rig.until_over(&second).await.vm, Some(queued));
    assert_eq!(rig.until_over(&first).await.record.conclusion.as_deref(), Some("cancelled"));
    rig.assert_clean().await;
}

/// Another stack of the same queue has the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_of_another_stack_gets_no_vm() {
    let rig = Rig::new(1).await;
    rig.buildkite
        .faults("batch-reserve", 1, json!({"answer": {"status": 200, "body": {"reserved": [], "not_reserved": []}}}))
        .await;
    let job = rig.buildkite.job(&[]).await;
    let postponed = async || rig.known(&job).await.is_some_and(|job| job.not_before.is_some());
    rig.buildkite.until("the job is left for later", postponed).await;
    assert_eq!(rig.vms().await.len(), 0);
    rig.buildkite.tell("take", json!({"job": job, "stack": "host-2"})).await;
    rig.buildkite.cancel(&job).await;
    rig.until_over(&job).await;
    assert_eq!(rig.vms().await.len(), 0);
    rig.assert_clean().await;
}

/// Each change is told once, and what cannot be told changes nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_a_job_says_what_it_waits_for() {
    let rig = Rig::new(1).await;
    rig.fate(&[Fate::Begins]);
    let first = rig.buildkite.job(&[]).await;
    let busy = rig.created_vm(&first).await;
    rig.host.until(busy, |vm| !vm.jobs.is_empty()).await;
    rig.buildkite.fault("notifications", json!({"answer": {"status": 503, "body": {"message": "later"}}})).await;
    let second = rig.buildkite.job(&[]).await;
    let queued = rig.created_vm(&second).await;
    let notes = async || rig.buildkite.job_state(&second).await["notifications"].as_array().unwrap().clone();
    rig.buildkite.until("a note", async || !notes().await.is_empty()).await;
    let name = rig.host.until(queued, |_| true).await.spec.name;
    assert_eq!(notes().await, [json!(format!("The virtual machine {name} waits for a free slot of its host"))]);
    rig.buildkite.requests().await;
    for _ in 0..3 {
        rig.buildkite
            .until("another poll", async || {
                let asked = rig.buildkite.requests().await;
                assert!(!asked.iter().any(|r| r["path"].as_str().unwrap().ends_with("notifications")), "{asked:?}");
                asked.iter().any(|r| r["path"].as_str().unwrap().ends_with("batch-reserve"))
            })
            .await;
    }
    rig.host.delete(busy, true).await;
    rig.until_job(&second, "finished").await;
    rig.buildkite.tell("knobs", json!({"lost_seconds": 0})).await;
    rig.until_over(&first).await;
    rig.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_for_which_there_can_be_no_vm_is_finished_with_words() {
    let rig = Rig::new(1).await;
    rig.fate(&[Fate::DiesEarly; 100]);
    rig.buildkite.fault("finish", json!({"answer": {"status": 503, "body": {"message": "later"}}})).await;
    let job = rig.buildkite.job(&[]).await;
    // The refusal is repeated after a pause.
    let refused = async || {
        rig.known(&job).await.is_some_and(|job| job.tries == MOST_FAILED_VMS)
            && rig.buildkite.requests().await.iter().any(|r| r["path"].as_str().unwrap().ends_with("finish"))
    };
    rig.buildkite.until("the end of the job is requested", refused).await;
    rig.buildkite
        .until("a pause", async || rig.known(&job).await.unwrap().not_before > Some(rig.buildkite.clock().now()))
        .await;
    rig.buildkite.advance(31).await;
    let state = rig.until_job(&job, "finished").await;
    let end = &state["end"];
    assert_eq!((&end["by"], &end["exit_status"], &state["starts"]), (&json!("stack"), &json!(-1), &json!(0)));
    let words = end["detail"].as_str().unwrap();
    assert!(
        words.contains("10 virtual machines of its pool macs") && words.contains("Error of the last one: "),
        "{words}"
    );
    let known = rig.until_over(&job).await;
    assert_eq!((known.record.conclusion.as_deref(), known.vm), (Some("failure"), None));
    assert_eq!(rig.vms().await.len(), MOST_FAILED_VMS as usize);
    rig.assert_clean().await;
}
