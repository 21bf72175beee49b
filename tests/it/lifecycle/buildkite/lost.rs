//! Vms are lost: before their job they cost nothing, and with their job Buildkite ends it.

use super::*;

/// Fifty jobs, of whose guests every fifth dies before its job and every seventh with it, and of whose requests some fail or
/// lose their answers. Each job ends, and none is begun twice.
#[tokio::test(flavor = "multi_thread")]
async fn each_of_fifty_jobs_is_finished_although_vms_are_lost() {
    const JOBS: usize = 50;
    let rig = Rig::new(6).await;
    rig.buildkite.tell("knobs", json!({"lost_seconds": 3})).await;
    let fate = |n: usize| match n {
        n if n % 5 == 0 => Fate::DiesEarly,
        n if n % 7 == 0 => Fate::DiesAtWork,
        _ => Fate::Works,
    };
    rig.fate(&(0..JOBS + JOBS / 5).map(fate).collect::<Vec<_>>());
    for path in ["scheduled-jobs", "batch-reserve", "job-acquisition-tokens", "get-states"] {
        let faults = json!([
            {"path": path, "after": 3, "times": 2, "then": "lose_reply"},
            {"path": path, "after": 9, "times": 1, "then": {"answer": {"status": 503, "body": {"message": "later"}}}},
            {"path": path, "after": 15, "times": 1, "then": {
                "answer": {"status": 429, "headers": {"ratelimit-reset": "0"}, "body": {"message": "wait"}},
            }},
        ]);
        rig.buildkite.tell("faults", faults).await;
    }
    let mut jobs = Vec::new();
    for _ in 0..JOBS {
        jobs.push(rig.buildkite.job(&[]).await);
    }
    let all_over = async || rig.jobs().await.iter().filter(|job| job.is_over()).count() == JOBS;
    let deadline = std::time::Instant::now() + Duration::from_secs(120);
    while !all_over().await {
        assert!(std::time::Instant::now() < deadline, "{:#?}", rig.buildkite.state().await);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let state = rig.buildkite.state().await;
    let ends: Vec<(u64, &str)> = state["jobs"]
        .as_array()
        .unwrap()
        .iter()
        .map(|job| (job["starts"].as_u64().unwrap(), job["end"]["by"].as_str().unwrap_or_default()))
        .collect();
    assert!(ends.iter().all(|(starts, by)| *starts == 1 && matches!(*by, "agent" | "buildkite")), "{ends:?}");
    let lost = ends.iter().filter(|(_, by)| *by == "buildkite").count();
    assert!(lost > 0 && lost < JOBS / 4, "{lost}");
    let tries: u32 = rig.jobs().await.iter().map(|job| job.tries).sum();
    let attempts: u32 = rig.vms().await.iter().map(|vm| vm.attempt).sum();
    assert!(tries as usize >= JOBS && attempts as usize > JOBS, "{tries} vms with {attempts} attempts");
    rig.assert_clean().await;
}
