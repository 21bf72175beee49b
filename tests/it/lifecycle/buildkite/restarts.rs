//! The process dies right before and right after each request that changes something at Buildkite.

use super::*;

/// `stall`: the request is not carried out; `hang`: it is, and its answer never comes.
const DEATHS: [&str; 2] = ["stall", "hang"];

/// Waits until the double was asked for a path with this end.
async fn asked(rig: &Rig, end: &str) {
    let asked = async || rig.buildkite.requests().await.iter().any(|r| r["path"].as_str().unwrap().ends_with(end));
    rig.buildkite.until(end, asked).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_around_the_reservation_or_the_token_costs_no_job() {
    for path in ["batch-reserve", "job-acquisition-tokens"] {
        for death in DEATHS {
            let mut rig = Rig::new(1).await;
            rig.buildkite.fault(path, json!(death)).await;
            let job = rig.buildkite.job(&[]).await;
            asked(&rig, path).await;
            rig.restart().await;
            let end = rig.until_job(&job, "finished").await;
            assert_eq!((&end["starts"], &end["end"]["by"]), (&json!(1), &json!("agent")), "{path} {death}");
            let known = rig.until_over(&job).await;
            assert_eq!((known.tries, rig.vms().await.len()), (1, 1), "{path} {death}");
            rig.assert_clean().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_death_around_the_end_of_a_job_ends_it_once() {
    for death in DEATHS {
        let mut rig = Rig::new(1).await;
        rig.fate(&[Fate::DiesEarly; 100]);
        rig.buildkite.fault("finish", json!(death)).await;
        let job = rig.buildkite.job(&[]).await;
        asked(&rig, "finish").await;
        rig.restart().await;
        let state = rig.until_job(&job, "finished").await;
        assert_eq!((&state["end"]["by"], &state["starts"]), (&json!("stack"), &json!(0)), "{death}");
        rig.until_over(&job).await;
        let again = rig.buildkite.requests().await.iter().any(|r| r["path"].as_str().unwrap().ends_with("finish"));
        assert_eq!(again, death == "stall", "what was done is found and not requested again");
        rig.assert_clean().await;
    }
}

/// Nothing renews the reservation of a service that is down: the job is there for other stacks again.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_comes_back_when_its_service_stays_down() {
    let mut rig = Rig::new(1).await;
    rig.fate(&[Fate::Idles]);
    let job = rig.buildkite.job(&[]).await;
    let id = rig.created_vm(&job).await;
    rig.host.until(id, |vm| vm.registered.is_some()).await;
    rig.host.crash().await;
    assert_eq!(rig.buildkite.job_state(&job).await["state"], "reserved");
    rig.buildkite.advance(2000).await;
    assert_eq!(rig.buildkite.job_state(&job).await["state"], "scheduled");
    // Another stack runs it meanwhile.
    rig.buildkite.tell("take", json!({"job": job, "stack": "host-2"})).await;
    rig.start().await;
    rig.buildkite.cancel(&job).await;
    let vm = rig.host.until_state(id, State::Deleted).await;
    assert_eq!(vm.jobs.len(), 0);
    rig.until_over(&job).await;
    rig.assert_clean().await;
}

/// While its vm waits for a slot, a job stays reserved.
#[tokio::test(flavor = "multi_thread")]
async fn the_reservation_of_a_job_whose_vm_waits_is_prolonged() {
    let rig = Rig::new(1).await;
    rig.fate(&[Fate::Begins]);
    let first = rig.buildkite.job(&[]).await;
    let busy = rig.created_vm(&first).await;
    rig.host.until(busy, |vm| !vm.jobs.is_empty()).await;
    let second = rig.buildkite.job(&[]).await;
    rig.created_vm(&second).await;
    rig.buildkite.tell("knobs", json!({"lost_seconds": 1_000_000})).await;
    let until = async || rig.buildkite.job_state(&second).await["reserved_until"].as_str().map(str::to_owned);
    for _ in 0..3 {
        let before = until().await;
        rig.buildkite.advance(600).await;
        rig.buildkite.until("the reservation is prolonged", async || until().await > before).await;
    }
    assert_eq!(rig.buildkite.job_state(&second).await["state"], "reserved");
    rig.host.delete(busy, true).await;
    rig.until_job(&second, "finished").await;
    rig.buildkite.tell("knobs", json!({"lost_seconds": 0})).await;
    rig.until_over(&first).await;
    rig.assert_clean().await;
}
