//! Jobs, and what the webhook was sent. Also what the double makes of the end of a job, because the rest is built on that.

use std::sync::Arc;

use axum::{body::Bytes, http::HeaderMap};
use mayfly::sources::github::{
    GitHubClient, GitHubError, WorkflowJobFilter,
    model::{Conclusion, JobStatus},
};
use secrecy::ExposeSecret;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::runner;
use crate::support::github::{GitHub, acme, app_repository, signature};

async fn job(github: &GitHub, labels: &[&str]) -> (u64, u64) {
    let made = github.tell("jobs", json!({"repository": "acme/app", "labels": labels})).await;
    (made["id"].as_u64().unwrap(), made["run"].as_u64().unwrap())
}

/// What arrives at a webhook: headers and the body as it was.
async fn hook(github: &GitHub) -> mpsc::UnboundedReceiver<(HeaderMap, Bytes)> {
    let (to, from) = mpsc::unbounded_channel();
    let to = Arc::new(to);
    let app = axum::Router::new().fallback(move |headers: HeaderMap, body: Bytes| {
        let to = to.clone();
        async move {
            to.send((headers, body)).unwrap();
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/webhooks/github", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    github.tell("hooks", json!({"url": url, "secret": "It's a Secret to Everybody"})).await;
    from
}

async fn next(from: &mut mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) -> Value {
    let arrived = tokio::time::timeout(std::time::Duration::from_secs(20), from.recv()).await;
    let (headers, body) = arrived.expect("in time").unwrap();
    let mut payload: Value = serde_json::from_slice(&body).unwrap();
    payload["signed"] = json!(headers["x-hub-signature-256"] == signature("It's a Secret to Everybody", &body));
    payload["guid"] = json!(headers["x-github-delivery"].to_str().unwrap());
    payload
}

/// Starts a runner's session; gives its configuration, which proves it.
async fn online(github: &GitHub, client: &GitHubClient, name: &str) -> (u64, String) {
    let made = client.generate_jit_config(&acme(), &runner(name)).await.unwrap();
    let jit = made.encoded_jit_config.expose_secret().to_owned();
    github.tell("session/connect", json!({"jit": jit})).await;
    let (status, said) = github.told("session/connect", json!({"jit": jit})).await;
    assert_eq!((status, &said["message"]), (409, &json!("A session for this runner already exists.")));
    (made.runner.id, jit)
}

#[tokio::test]
async fn queued_jobs_are_found_in_runs_that_wait_and_in_runs_that_have_begun() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let (first, run) = job(&github, &["macOS-15"]).await;
    let (second, _) = job(&github, &["linux"]).await;
    online(&github, &client, "vm-1").await;
    github.tell("dispatch", json!({})).await;
    let more = json!({"repository": "acme/app", "labels": ["macOS-15"], "run": run});
    let third = github.tell("jobs", more).await["id"].as_u64().unwrap();
    let queued = client.queued_jobs(&app_repository()).await.unwrap();
    assert_eq!(queued.iter().map(|j| j.id).collect::<Vec<_>>(), [second, third], "one is in a run that has begun");
    assert_eq!(queued[1].labels, ["macOS-15"]);

    let begun = client.job(&app_repository(), first).await.unwrap().unwrap();
    assert_eq!((begun.status, begun.runner_name.as_deref()), (JobStatus::InProgress, Some("vm-1")));
    assert_eq!(client.job(&app_repository(), 1).await.unwrap(), None);
    assert_eq!(client.jobs_of_run(&app_repository(), run, WorkflowJobFilter::All).await.unwrap().len(), 2);
    let error = client.queued_jobs(&acme()).await.unwrap_err();
    assert!(matches!(error, GitHubError::Settings { .. }), "{error}");

    // A re-run has a new id and the next attempt, and counts as the latest.
    let again = json!({"repository": "acme/app", "labels": [], "run": run, "attempt": 2});
    github.tell("jobs", again).await;
    let latest = client.jobs_of_run(&app_repository(), run, WorkflowJobFilter::Latest).await.unwrap();
    assert_eq!(latest.iter().map(|j| j.run_attempt).collect::<Vec<_>>(), [Some(2)]);
}

#[tokio::test]
async fn a_job_ends_with_its_result_and_only_then_is_the_runner_gone() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let mut arrived = hook(&github).await;
    let (id, _) = job(&github, &["self-hosted"]).await;
    let (runner, jit) = online(&github, &client, "vm-1").await;
    github.tell("dispatch", json!({})).await;
    for action in ["queued", "in_progress"] {
        let payload = next(&mut arrived).await;
        assert_eq!((&payload["action"], &payload["signed"]), (&json!(action), &json!(true)), "{payload}");
        assert_eq!(payload["workflow_job"]["id"], id);
    }
    // The hook comes first; the result is not there yet.
    github.tell("session/log", json!({"jit": jit, "text": "the last of the log"})).await;
    assert!(matches!(client.delete_runner(&acme(), runner).await, Err(GitHubError::RunnerBusy { .. })));
    github.tell("session/completejob", json!({"jit": jit, "conclusion": "success"})).await;
    assert_eq!(client.get_runner(&acme(), runner).await.unwrap(), None);
    let payload = next(&mut arrived).await;
    assert_eq!(payload["action"], "completed");
    assert_eq!(payload["workflow_job"]["runner_id"], runner);
    let job = client.job(&app_repository(), id).await.unwrap().unwrap();
    assert_eq!((job.status, job.conclusion), (JobStatus::Completed, Some(Conclusion::Success)));
    assert_eq!(github.tell("state", json!({})).await["jobs"][0]["log"], "the last of the log");
}

#[tokio::test]
async fn a_vm_that_is_killed_too_early_loses_the_job_when_the_lease_is_over() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let (id, _) = job(&github, &["self-hosted"]).await;
    let (runner, jit) = online(&github, &client, "vm-1").await;
    github.tell("dispatch", json!({})).await;
    github.advance(500).await;
    github.tell("session/renew", json!({"jit": jit})).await;
    github.advance(500).await;
    assert!(matches!(client.delete_runner(&acme(), runner).await, Err(GitHubError::RunnerBusy { .. })));
    assert_eq!(client.job(&app_repository(), id).await.unwrap().unwrap().status, JobStatus::InProgress);
    github.advance(101).await;
    assert_eq!(client.get_runner(&acme(), runner).await.unwrap(), None);
    let lost = client.job(&app_repository(), id).await.unwrap().unwrap();
    assert_eq!(lost.conclusion, Some(Conclusion::Failure));
    let (status, _) = github.told("session/completejob", json!({"jit": jit})).await;
    assert_eq!(status, 404, "too late");
}

#[tokio::test]
async fn any_idle_runner_may_get_any_job() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let mut jobs = Vec::new();
    for n in 0..8 {
        jobs.push(job(&github, &["MACOS-15"]).await.0);
        online(&github, &client, &format!("vm-{n}")).await;
    }
    let given = github.tell("dispatch", json!({})).await["given"].as_array().unwrap().clone();
    assert_eq!(given.iter().map(|g| g["job"].as_u64().unwrap()).collect::<Vec<_>>(), jobs);
    let runners: Vec<u64> = given.iter().map(|g| g["runner"].as_u64().unwrap()).collect();
    let mut sorted = runners.clone();
    sorted.sort_unstable();
    assert_ne!(runners, sorted, "not in the order in which they were made");
    let (status, _) = github.told("cancel", json!({"job": jobs[0]})).await;
    assert_eq!(status, 409);
}

#[tokio::test]
async fn deliveries_that_were_lost_are_found_and_sent_again() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = github.client(&app);
    let mut arrived = hook(&github).await;
    github.advance(-3600).await;
    job(&github, &["old"]).await;
    next(&mut arrived).await;
    github.advance(3600).await;
    let since = jiff::Timestamp::now() - jiff::SignedDuration::from_secs(60);

    github.tell("hook", json!({"drop": 1})).await;
    let (lost, _) = job(&github, &["lost"]).await;
    let (seen, _) = job(&github, &["seen"]).await;
    assert_eq!(next(&mut arrived).await["workflow_job"]["id"], seen);
    // The record of the answer is written after the answer.
    let mut deliveries = Vec::new();
    for _ in 0..100 {
        deliveries = client.hook_deliveries(since).await.unwrap();
        if deliveries.first().is_some_and(|d| d.arrived()) {
            break;
        }
    }
    assert_eq!(deliveries.iter().map(|d| d.arrived()).collect::<Vec<_>>(), [true, false]);
    let missed = &deliveries[1];
    let content = client.hook_delivery(missed.id).await.unwrap();
    assert_eq!((&content.delivery.guid, content.delivery.event.as_str()), (&missed.guid, "workflow_job"));
    assert_eq!(content.request.payload["workflow_job"]["id"], lost);
    client.redeliver(missed.id).await.unwrap();
    let again = next(&mut arrived).await;
    assert_eq!((&again["guid"], &again["workflow_job"]["id"]), (&json!(missed.guid), &json!(lost)));

    github.tell("hook", json!({"duplicate": 1, "wrong_signature": 1})).await;
    job(&github, &["twice"]).await;
    let (one, two) = (next(&mut arrived).await, next(&mut arrived).await);
    assert_eq!((&one["guid"], &one["signed"]), (&two["guid"], &json!(false)));
    github.tell("hook", json!({"shuffle": 6})).await;
    let mut queued = Vec::new();
    for _ in 0..6 {
        queued.push(job(&github, &["shuffled"]).await.0);
    }
    let mut came = Vec::new();
    for _ in 0..6 {
        came.push(next(&mut arrived).await["workflow_job"]["id"].as_u64().unwrap());
    }
    assert_ne!(came, queued);
    came.sort_unstable();
    assert_eq!(came, queued);

    // Late, and in the order in which it happened.
    github.tell("hook", json!({"shuffle": 0, "hold": true})).await;
    let (late, later) = (job(&github, &[]).await.0, job(&github, &[]).await.0);
    assert!(arrived.try_recv().is_err());
    github.tell("hook", json!({"hold": false})).await;
    for expected in [late, later] {
        assert_eq!(next(&mut arrived).await["workflow_job"]["id"], expected);
    }
}

#[tokio::test]
async fn the_log_of_deliveries_has_pages() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    hook(&github).await;
    github.tell("hook", json!({"drop": 230})).await;
    for _ in 0..230 {
        job(&github, &[]).await;
    }
    let all = client.hook_deliveries(jiff::Timestamp::UNIX_EPOCH).await.unwrap();
    assert_eq!(all.len(), 230);
    assert!(all.windows(2).all(|w| w[0].id > w[1].id), "newest first");
}
