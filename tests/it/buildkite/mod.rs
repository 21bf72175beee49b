//! The client of Buildkite's stacks API against a double of Buildkite.

use std::time::Duration;

use jiff::Timestamp;
use mayfly::{
    domain::{
        SourceName,
        job::{Job, UpdateSource},
        job_record::JobStatus,
    },
    sources::{
        SourceError, SourceErrorKind,
        buildkite::{BuildkiteClient, BuildkiteOptions, BuildkiteQueue},
        deliveries::FoundJob,
        runner::{Claim, Removed},
    },
};
use secrecy::ExposeSecret as _;
use serde_json::json;

use crate::{
    cli::Mayfly,
    support::{
        buildkite::{Buildkite, QUEUE},
        github::private_file,
    },
};

const STACK: &str = "host-1";

/// A client with this token, which waits for little.
fn client_with(buildkite: &Buildkite, token: &str, queue: &str) -> BuildkiteClient {
    let file = buildkite.dir().join("token");
    private_file(&file, token);
    let queue = BuildkiteQueue::new(Some(&buildkite.root), "acme", queue, STACK).unwrap();
    let mut options = BuildkiteOptions::new(queue, file);
    options.retry.first_pause = Duration::from_millis(5);
    options.clock = buildkite.clock();
    options.timeout = Duration::from_secs(2);
    BuildkiteClient::new(options).unwrap()
}

async fn client(buildkite: &Buildkite) -> BuildkiteClient {
    client_with(buildkite, &buildkite.token().await, QUEUE)
}

fn kind<T>(result: Result<T, SourceError>) -> SourceErrorKind {
    result.err().expect("it is refused").kind
}

/// What is known of the only queued job.
async fn known(client: &BuildkiteClient) -> Job {
    let mut jobs = client.queued_jobs().await.unwrap();
    assert_eq!(jobs.len(), 1);
    Job::new(jobs.remove(0).update(&SourceName::new("kite").unwrap()), Timestamp::UNIX_EPOCH)
}

async fn status(client: &BuildkiteClient, job: &Job) -> JobStatus {
    match client.jobs(&[job]).await.unwrap().remove(0) {
        FoundJob::Here(update) => update.record.status,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_job_is_listed_reserved_and_given_to_one_agent() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    let id = buildkite.job(&["os=macos"]).await;
    let job = known(&client).await;
    assert_eq!((job.record.id.to_string(), job.record.repository.as_str()), (id.clone(), "acme/app"));
    assert_eq!(job.first_heard, UpdateSource::Poll);
    assert_eq!(job.labels, ["queue=macs", "os=macos"]);
    let state = buildkite.state().await;
    assert_eq!((&state["stacks"][0]["key"], &state["stacks"][0]["type"]), (&json!(STACK), &json!("custom")));

    assert_eq!(client.claim(&id).await.unwrap(), Claim::Granted);
    assert!(client.queued_jobs().await.unwrap().is_empty(), "a reserved job is not listed");
    assert_eq!(status(&client, &job).await, JobStatus::Queued);
    let made = client.register(&id).await.unwrap();
    assert_eq!(made.runner_id.to_string(), id);
    let shown = client.runner(&id).await.unwrap().unwrap();
    assert_eq!((shown.online, shown.busy), (Some(false), false));

    let agent = buildkite.agent(made.secret.expose_secret()).await.unwrap();
    assert_eq!(buildkite.agent(made.secret.expose_secret()).await.err(), Some(401), "a token is good for one agent");
    agent.begin().await;
    assert!(client.runner(&id).await.unwrap().unwrap().busy);
    assert_eq!(status(&client, &job).await, JobStatus::InProgress);
    assert_eq!(kind(client.release(&id).await), SourceErrorKind::RunnerBusy);
    assert_eq!(kind(client.register(&id).await), SourceErrorKind::Refused);
    agent.finish().await;
    assert_eq!(status(&client, &job).await, JobStatus::Completed);
    assert!(client.runner(&id).await.unwrap().is_none());
    assert_eq!(client.release(&id).await.unwrap(), Removed::Before);
}

#[tokio::test]
async fn pages_are_read_to_their_end() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(buildkite.job(&[]).await);
    }
    // Pages of this client are larger than a test should fill, so the first one ends early here.
    let job = |id: &String| {
        json!({
            "id": id, "priority": 0, "agent_query_rules": null, "scheduled_at": "2026-01-01T00:00:00Z",
            "pipeline": {"slug": "app", "uuid": null}, "build": {"number": null}, "step": {"key": null},
        })
    };
    let body = json!({
        "jobs": [job(&ids[0])], "page_info": {"has_next_page": true, "end_cursor": "MQ=="},
        "cluster_queue": {"id": "q", "dispatch_paused": false},
    });
    buildkite.fault("scheduled-jobs", json!({"answer": {"status": 200, "body": body}})).await;
    assert_eq!(client.queued_jobs().await.unwrap().len(), 3);
    let asked = buildkite.requests().await;
    let lists: Vec<_> = asked.iter().filter(|r| r["method"] == "GET").collect();
    assert!(lists.len() == 2 && lists[1]["query"].to_string().contains("[\"after\",\"MQ==\"]"), "{lists:#?}");
}

#[tokio::test]
async fn nothing_is_reserved_while_the_queue_is_paused() {
    let buildkite = Buildkite::start().await;
    for field in ["dispatch_paused", "paused"] {
        buildkite.tell("knobs", json!({"pause_field": field})).await;
        let client = client(&buildkite).await;
        let id = buildkite.job(&[]).await;
        buildkite.pause(true).await;
        // Also before the queue was listed.
        assert_eq!(client.claim(&id).await.unwrap(), Claim::Paused);
        assert_eq!(known(&client).await.status(), JobStatus::Waiting);
        assert_eq!(client.claim(&id).await.unwrap(), Claim::Paused);
        buildkite.pause(false).await;
        assert_eq!(known(&client).await.status(), JobStatus::Queued);
        assert_eq!(client.claim(&id).await.unwrap(), Claim::Granted);
    }
    // An answer that does not say it is not taken for a queue that runs.
    buildkite.tell("knobs", json!({"pause_field": "halted"})).await;
    assert_eq!(kind(client(&buildkite).await.queued_jobs().await), SourceErrorKind::Unparsable);
}

#[tokio::test]
async fn a_reservation_expires_unless_it_is_prolonged_and_another_stack_keeps_its_own() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    let (kept, lapsed, other) = (buildkite.job(&[]).await, buildkite.job(&[]).await, buildkite.job(&[]).await);
    buildkite.tell("take", json!({"job": other, "stack": "host-2"})).await;
    assert_eq!(client.claim(&other).await.unwrap(), Claim::Taken);
    for id in [&kept, &lapsed] {
        assert_eq!(client.claim(id).await.unwrap(), Claim::Granted);
    }
    buildkite.advance(600).await;
    client.keep_claims(&[kept.clone(), other.clone()]).await.unwrap();
    buildkite.advance(600).await;
    let mut seen = Vec::new();
    for id in [&kept, &lapsed, &other] {
        let state = buildkite.job_state(id).await;
        seen.push((state["state"].as_str().unwrap().to_owned(), state["reserved_by"].as_str().map(str::to_owned)));
    }
    assert_eq!(seen[0], ("reserved".to_owned(), Some(STACK.to_owned())));
    assert_eq!(seen[1], ("scheduled".to_owned(), None));
    assert_eq!(seen[2], ("reserved".to_owned(), Some("host-2".to_owned())));
    assert_eq!(kind(client.register(&other).await), SourceErrorKind::Refused);
}

#[tokio::test]
async fn a_token_lives_while_a_guest_boots_and_no_longer() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    let id = buildkite.job(&[]).await;
    client.claim(&id).await.unwrap();
    // The reservation is prolonged first: a token ends with it.
    let made = client.register(&id).await.unwrap();
    buildkite.advance(1500).await;
    buildkite.agent(made.secret.expose_secret()).await.unwrap();
    let late = client.register(&id).await.unwrap();
    buildkite.advance(2000).await;
    assert_eq!(buildkite.agent(late.secret.expose_secret()).await.err(), Some(401));
}

#[tokio::test]
async fn a_job_is_finished_once_and_with_words() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    let id = buildkite.job(&[]).await;
    client.claim(&id).await.unwrap();
    buildkite.fault("finish", json!("lose_reply")).await;
    assert_eq!(kind(client.finish(&id, "no virtual machine").await), SourceErrorKind::Unavailable { sent: true });
    let end = buildkite.job_state(&id).await["end"].clone();
    assert_eq!(
        (&end["by"], &end["exit_status"], &end["detail"]),
        (&json!("stack"), &json!(-1), &json!("no virtual machine"))
    );
    let calls = buildkite.requests().await.iter().filter(|r| r["path"].as_str().unwrap().ends_with("finish")).count();
    assert_eq!(calls, 1, "it is not repeated by itself");
    assert_eq!(kind(client.finish(&id, "again").await), SourceErrorKind::Refused);
    // A text that is too long would be refused.
    let long = buildkite.job(&[]).await;
    client.finish(&long, &"é".repeat(5000)).await.unwrap();
}

#[tokio::test]
async fn what_fails_for_a_while_is_repeated_and_a_limit_is_waited_for() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    let id = buildkite.job(&[]).await;
    for fault in [json!("drop"), json!("lose_reply"), json!({"answer": {"status": 503, "body": {"message": "later"}}})]
    {
        for path in ["register", "scheduled-jobs", "batch-reserve", "job-acquisition-tokens", "get-states"] {
            buildkite.fault(path, fault.clone()).await;
        }
        assert_eq!(client.claim(&id).await.unwrap(), Claim::Granted);
        client.register(&id).await.unwrap();
        assert!(client.runner(&id).await.unwrap().is_some());
        client.visible().await.unwrap();
        buildkite.tell("calm", json!({})).await;
    }
    // The double counts as Buildkite does: more than ten lists in a second are refused.
    for _ in 0..15 {
        client.visible().await.unwrap();
    }
    let refused = buildkite.requests().await.iter().filter(|r| r["status"] == 429).count();
    assert!(refused > 0, "the limit was not met");
    let then = json!({"answer": {"status": 429, "headers": {"ratelimit-reset": "60"}, "body": {"message": "wait"}}});
    buildkite.fault("scheduled-jobs", then).await;
    assert!(matches!(kind(client.visible().await), SourceErrorKind::RateLimited { .. }));
    buildkite.fault("scheduled-jobs", json!({"say": "<html>"})).await;
    assert_eq!(kind(client.visible().await), SourceErrorKind::Unparsable);
}

#[tokio::test]
async fn a_stack_that_was_deregistered_is_registered_again() {
    let buildkite = Buildkite::start().await;
    let client = client(&buildkite).await;
    client.visible().await.unwrap();
    buildkite.tell("deregister", json!({"stack": STACK})).await;
    client.visible().await.unwrap();
    assert_eq!(buildkite.state().await["stacks"][0]["key"], STACK);
    buildkite.tell("knobs", json!({"most_stacks": 0})).await;
    buildkite.tell("deregister", json!({"stack": STACK})).await;
    let error = client.visible().await.unwrap_err();
    assert!(error.detail.contains("too many stacks"), "{error}");
}

#[tokio::test]
async fn a_refusal_says_what_to_do_and_no_error_shows_a_token() {
    let buildkite = Buildkite::start().await;
    let token = buildkite.token().await;
    let client = client_with(&buildkite, &token, "elsewhere");
    let unknown = client.visible().await.unwrap_err();
    assert!(unknown.detail.contains("check `queue`"), "{unknown}");
    let client = client_with(&buildkite, &token, QUEUE);
    client.visible().await.unwrap();
    buildkite.tell("revoke", json!({"token": token})).await;
    let refused = client.visible().await.unwrap_err();
    assert!(refused.detail.contains("does not accept the agent token"), "{refused}");
    for error in [unknown, refused] {
        assert!(!error.to_string().contains(&token), "{error}");
    }
    assert!(!format!("{client:?}").contains(&token));
    // A new token in the file is used without a restart.
    private_file(&buildkite.dir().join("token"), &buildkite.token().await);
    client.visible().await.unwrap();
}

#[tokio::test]
async fn source_check_says_what_can_be_used_and_what_not() {
    let buildkite = Buildkite::start().await;
    let token = buildkite.token().await;
    let mayfly = Mayfly::new();
    private_file(&mayfly.path(".mayfly/kite.token"), &token);
    let configuration = |queue: &str| {
        let text = format!(
            "[sources.kite]\nkind = \"buildkite\"\nurl = \"{}\"\norganization = \"acme\"\nqueue = \"{queue}\"\n\
             stack = \"{STACK}\"\ntoken_file = \"kite.token\"\n",
            buildkite.root
        );
        mayfly.write(".mayfly/mayfly.toml", &text);
    };
    // Its lines are broken to the width of a terminal.
    let check = async |code: i32| {
        let ran = mayfly.run(&["source", "check", "kite"]).await.ends(code);
        assert!(!ran.out.contains(&token) && !ran.err.contains(&token));
        ran.out.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    configuration(QUEUE);
    buildkite.job(&[]).await;
    let out = check(0).await;
    for line in ["stack host-1", "1 scheduled in the queue macs", "not paused"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    buildkite.pause(true).await;
    let out = check(0).await;
    assert!(out.contains("paused: no jobs are started"), "{out}");
    configuration("elsewhere");
    let out = check(1).await;
    assert!(out.contains("check `queue`"), "{out}");
    configuration(QUEUE);
    buildkite.tell("revoke", json!({"token": token})).await;
    let out = check(1).await;
    assert!(out.contains("does not accept the agent token"), "{out}");
}
