//! The life of a job.

use serde_json::{Value, json};

use super::{NULL, names, shown, states};
use crate::support::gitea::Gitea;

#[tokio::test]
async fn a_job_is_queued_taken_and_over() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let queued = shown(&gitea, ids.job).await;
    assert_eq!(states(&queued), json!(["queued", 0, null, null]));
    assert_eq!(
        (&queued["started_at"], &queued["completed_at"], &queued["steps"]),
        (&json!(NULL), &json!(NULL), &json!([]))
    );
    for absent in ["conclusion", "runner_id", "runner_name"] {
        assert!(queued.get(absent).is_none(), "{absent}");
    }
    let program = gitea.register("vm-1", &["mac", "more"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    let taken = shown(&gitea, ids.job).await;
    assert_eq!(states(&taken), json!(["in_progress", 1, null, "vm-1"]));
    assert_eq!((&taken["runner_id"], &taken["completed_at"]), (&json!(program.id), &json!(NULL)));
    program.finish(task, "FAILURE").await.unwrap();
    let over = shown(&gitea, ids.job).await;
    assert_eq!(states(&over), json!(["completed", 1, "failure", "vm-1"]), "its runner's name stays");
    assert!(names(&gitea).await.is_empty(), "the row of a runner for one job goes with it");
}

#[tokio::test]
async fn what_waits_for_other_jobs_is_no_demand() {
    let gitea = Gitea::start().await;
    let ids = gitea.job_with(json!({"labels": ["mac"], "waiting": true})).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["waiting", 0, null, null]));
    let program = gitea.register("vm-1", &["mac"]).await;
    assert_eq!(program.fetch().await.unwrap(), None);
    gitea.order("release", ids.job).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["queued", 0, null, null]));
    assert!(program.fetch().await.unwrap().is_some());
}

#[tokio::test]
async fn a_rerun_keeps_the_id_and_counts_when_it_is_taken() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let created = shown(&gitea, ids.job).await["created_at"].clone();
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    assert_eq!(gitea.told("rerun", json!({"job": ids.job})).await.0, 409, "it is not over");
    program.finish(task, "FAILURE").await.unwrap();
    gitea.advance(60).await;
    gitea.order("rerun", ids.job).await;
    let again = shown(&gitea, ids.job).await;
    assert_eq!(states(&again), json!(["queued", 1, null, null]));
    assert_eq!(
        (&again["created_at"], &again["started_at"], &again["completed_at"]),
        (&created, &json!(NULL), &json!(NULL))
    );
    let second = gitea.register("vm-2", &["mac"]).await;
    let task = second.fetch().await.unwrap().expect("a task");
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["in_progress", 2, null, "vm-2"]));
    second.finish(task, "SUCCESS").await.unwrap();
    let attempts = gitea.job_state(ids.job).await["attempts"].clone();
    let seen: Vec<Value> =
        attempts.as_array().unwrap().iter().map(|a| json!([a["runner_name"], a["result"]])).collect();
    assert_eq!(json!(seen), json!([["vm-1", "failure"], ["vm-2", "success"]]));
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_waits_never_had_a_runner() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    gitea.order("cancel", ids.job).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["completed", 0, "cancelled", null]));
    gitea.order("rerun", ids.job).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["queued", 0, null, null]));
}

#[tokio::test]
async fn a_job_that_is_cancelled_while_it_runs_takes_the_row_along() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    gitea.order("cancel", ids.job).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["completed", 1, "cancelled", "vm-1"]));
    assert!(names(&gitea).await.is_empty());
    let refused = program.report(task).await.unwrap_err();
    assert!(refused.contains("unregistered runner"), "{refused}");
    assert_eq!(gitea.busy_deletions().await, 0, "the server did it itself");
}

#[tokio::test]
async fn a_job_goes_to_a_runner_that_has_all_of_its_labels() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac", "Large"]).await;
    for labels in [&["mac"][..], &["mac", "large"], &["Mac", "Large"], &["self-hosted"]] {
        let program = gitea.register("vm", labels).await;
        assert_eq!(program.fetch().await.unwrap(), None, "{labels:?}");
    }
    let program = gitea.register("vm", &["other", "Large", "mac"]).await;
    assert!(program.fetch().await.unwrap().is_some());
    assert_eq!(shown(&gitea, ids.job).await["runner_id"], program.id);
}

#[tokio::test]
async fn the_oldest_job_is_taken_first_and_a_runner_for_one_job_gets_no_second() {
    let gitea = Gitea::start().await;
    let (first, second) = (gitea.job(&["mac"]).await, gitea.job(&["mac"]).await);
    let program = gitea.register("vm-1", &["mac"]).await;
    assert!(program.fetch().await.unwrap().is_some());
    assert_eq!(program.fetch().await.unwrap(), None, "not even when it is started again");
    assert_eq!(states(&shown(&gitea, first.job).await), json!(["in_progress", 1, null, "vm-1"]));
    assert_eq!(shown(&gitea, second.job).await["status"], "queued");
}

#[tokio::test]
async fn a_job_that_no_runner_takes_is_cancelled_after_a_day() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["wanting"]).await;
    gitea.advance(24 * 3600 - 60).await;
    assert_eq!(shown(&gitea, ids.job).await["status"], "queued");
    gitea.advance(60).await;
    assert_eq!(states(&shown(&gitea, ids.job).await), json!(["completed", 0, "cancelled", null]));
    let there: jiff::Timestamp = gitea.state().await["now"].as_str().unwrap().parse().unwrap();
    let apart = gitea.clock().now().duration_since(there).as_secs();
    assert!(apart.abs() < 60, "the clocks are {apart} s apart");
}

#[tokio::test]
async fn the_end_of_a_job_is_told_by_the_clock_of_its_runner() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let program = gitea.register("vm-1", &["mac"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    let state = json!({"id": task.to_string(), "result": "RESULT_SUCCESS", "stoppedAt": "2001-02-03T04:05:06Z"});
    program.call("UpdateTask", json!({"state": state})).await.unwrap();
    let over = shown(&gitea, ids.job).await;
    assert_eq!((&over["status"], &over["completed_at"]), (&json!("completed"), &json!("2001-02-03T04:05:06Z")));
}
