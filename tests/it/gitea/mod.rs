//! The client of Gitea's API against a double of Gitea.

use std::{path::PathBuf, time::Duration};

use mayfly::{
    domain::{Scope, SourceName, job::UpdateSource, job_record::JobStatus},
    sources::{
        SourceError, SourceErrorKind,
        gitea::{GiteaClient, GiteaOptions, GiteaServer},
        runner::{Removed, ServerRunner},
    },
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::support::{gitea::Gitea, github::private_file};

fn acme() -> Scope {
    Scope::organization("acme").unwrap()
}

fn app() -> Scope {
    Scope::repository("acme/app").unwrap()
}

fn token_file(gitea: &Gitea) -> PathBuf {
    gitea.dir().join("token")
}

/// A client with this token, which waits for nothing.
fn client_with(gitea: &Gitea, token: &str) -> GiteaClient {
    private_file(&token_file(gitea), token);
    let mut options = GiteaOptions::new(GiteaServer::new(&gitea.root).unwrap(), token_file(gitea));
    options.retry.first_pause = Duration::from_millis(5);
    options.settle = Duration::from_millis(5);
    options.clock = gitea.clock();
    GiteaClient::new(options).unwrap()
}

async fn client(gitea: &Gitea) -> GiteaClient {
    client_with(gitea, &gitea.owner_token().await)
}

fn shown(found: Option<ServerRunner>) -> Option<(Option<bool>, bool)> {
    found.map(|runner| (runner.online, runner.busy))
}

fn kind<T: std::fmt::Debug>(result: Result<T, SourceError>) -> SourceErrorKind {
    result.unwrap_err().kind
}

#[tokio::test]
async fn a_runner_is_registered_found_and_removed() {
    for path in ["", "/git"] {
        let gitea = Gitea::start_below(path).await;
        let client = client(&gitea).await;
        let labels = ["mac".to_owned(), "arm64".to_owned()];
        let made = client.register(&acme(), "vm-1-1", &labels).await.unwrap();
        let id = made.runner_id.number().unwrap();
        let file: Value = serde_json::from_str(made.secret.expose_secret()).unwrap();
        let keys: Vec<&str> = file.as_object().unwrap().keys().map(String::as_str).collect();
        let mut expected = ["WARNING", "address", "ephemeral", "id", "labels", "name", "token", "uuid"].to_vec();
        expected.sort_unstable();
        let mut keys_sorted = keys.clone();
        keys_sorted.sort_unstable();
        assert_eq!(keys_sorted, expected);
        assert_eq!((&file["id"], &file["address"]), (&json!(made.runner_id), &json!(gitea.root)));
        assert!(made.secret.expose_secret().bytes().all(|b| b.is_ascii_graphic()), "one line for the guest's shell");

        assert_eq!(shown(client.runner(&acme(), id).await.unwrap()), Some((Some(false), false)));
        let program = gitea.program(made.secret.expose_secret());
        program.declare(&["mac", "arm64"]).await.unwrap();
        assert_eq!(shown(client.runner(&acme(), id).await.unwrap()), Some((Some(true), false)));
        let named = client.runners_named(&acme(), "vm-1-1").await.unwrap();
        assert_eq!(
            named.iter().map(|runner| runner.id.clone()).collect::<Vec<_>>(),
            std::slice::from_ref(&made.runner_id)
        );
        assert!(client.runners_named(&acme(), "vm-1").await.unwrap().is_empty());

        assert_eq!(client.delete_runner(&acme(), id).await.unwrap(), Removed::Now);
        assert_eq!(client.delete_runner(&acme(), id).await.unwrap(), Removed::Before);
        assert_eq!(shown(client.runner(&acme(), id).await.unwrap()), None);
    }
}

#[tokio::test]
async fn a_working_runner_is_never_removed() {
    let gitea = Gitea::start().await;
    let client = client(&gitea).await;
    let made = client.register(&acme(), "vm-1-1", &["mac".to_owned()]).await.unwrap();
    let id = made.runner_id.number().unwrap();
    let program = gitea.program(made.secret.expose_secret());
    program.declare(&["mac"]).await.unwrap();
    gitea.job(&["mac"]).await;
    let task = program.fetch().await.unwrap().unwrap();
    // It has reported nothing yet, then something, then nothing for a long time, and then its guest is gone.
    assert_eq!(kind(client.delete_runner(&acme(), id).await), SourceErrorKind::RunnerBusy);
    program.report(task).await.unwrap();
    assert_eq!(kind(client.delete_runner(&acme(), id).await), SourceErrorKind::RunnerBusy);
    for seconds in [30, 200] {
        gitea.advance(seconds).await;
        let seen = client.runner(&acme(), id).await.unwrap();
        assert!(!seen.unwrap().busy, "Gitea shows it as idle");
        assert_eq!(kind(client.delete_runner(&acme(), id).await), SourceErrorKind::RunnerBusy);
    }
    assert_eq!(gitea.busy_deletions().await, 0);
}

/// A job that is assigned between the look and the removal would be lost.
#[tokio::test]
async fn a_runner_gets_no_job_while_it_is_removed() {
    let gitea = Gitea::start().await;
    let client = client(&gitea).await;
    let made = client.register(&acme(), "vm-1-1", &["mac".to_owned()]).await.unwrap();
    let id = made.runner_id.number().unwrap();
    let program = gitea.program(made.secret.expose_secret());
    program.declare(&["mac"]).await.unwrap();
    gitea.job(&["mac"]).await;
    // The removal itself fails, so the runner is left disabled.
    let fault = json!([{"method": "DELETE", "path": "/runners/", "times": 100, "then": {"answer": {"status": 500}}}]);
    gitea.tell("faults", fault).await;
    assert!(matches!(kind(client.delete_runner(&acme(), id).await), SourceErrorKind::Unavailable { sent: true }));
    assert_eq!(program.fetch().await.unwrap(), None);
    gitea.tell("calm", json!({})).await;
    assert_eq!(client.delete_runner(&acme(), id).await.unwrap(), Removed::Now);
}

#[tokio::test]
async fn queued_jobs_of_a_scope_are_listed_with_their_repositories() {
    let gitea = Gitea::start().await;
    let client = client(&gitea).await;
    gitea.tell("repos", json!({"full_name": "acme/lib"})).await;
    gitea.tell("knobs", json!({"max_page": 2})).await;
    let mut ids = Vec::new();
    for repository in ["acme/app", "acme/lib", "acme/app", "acme/app", "acme/lib"] {
        ids.push(gitea.job_with(json!({"labels": ["mac"], "repository": repository})).await.job);
    }
    gitea.job_with(json!({"labels": ["mac"], "waiting": true})).await;
    let forge = SourceName::new("forge").unwrap();
    let listed = async |scope: Scope| {
        let jobs = client.queued_jobs(&scope).await.unwrap();
        jobs.into_iter().map(|job| job.update(&forge, UpdateSource::Poll).record).collect::<Vec<_>>()
    };
    let all = listed(acme()).await;
    assert_eq!(all.iter().map(|job| job.id.clone()).collect::<Vec<_>>(), ids);
    assert_eq!(all[1].repository, "acme/lib");
    assert!(all.iter().all(|job| job.status == JobStatus::Queued && job.run_attempt == 1));
    assert_eq!(listed(app()).await.len(), 3);
    assert_eq!(listed(Scope::Instance).await.len(), 5);
    let one = client.job(&app(), ids[0]).await.unwrap().unwrap().update(&forge, UpdateSource::Poll);
    assert_eq!(one.record, all[0]);
    assert!(client.job(&app(), 4711).await.unwrap().is_none());
}

#[tokio::test]
async fn a_registration_is_not_repeated_and_a_query_is() {
    let gitea = Gitea::start().await;
    let client = client(&gitea).await;
    gitea.fault("RunnerService/Register", json!("lose_reply")).await;
    let lost = client.register(&acme(), "vm-1-1", &["mac".to_owned()]).await;
    assert_eq!(kind(lost), SourceErrorKind::Unavailable { sent: true });
    assert_eq!(gitea.count("RunnerService/Register").await, 1);
    assert_eq!(client.runners_named(&acme(), "vm-1-1").await.unwrap().len(), 1);
    let broken = json!({"answer": {"status": 502, "body": "<html>"}});
    gitea.tell("faults", json!([{"path": "actions/jobs", "times": 2, "then": broken}])).await;
    assert!(client.queued_jobs(&acme()).await.unwrap().is_empty());
    // Something in front of Gitea answers in its place.
    let page = json!({"answer": {"status": 200, "body": "<html>welcome</html>"}});
    gitea.tell("faults", json!([{"path": "actions/jobs", "times": 1, "then": page}])).await;
    assert_eq!(kind(client.queued_jobs(&acme()).await), SourceErrorKind::Unparsable);
    let limited = json!({"answer": {"status": 429, "headers": {"retry-after": "90"}}});
    gitea.tell("faults", json!([{"path": "actions/jobs", "times": 1, "then": limited}])).await;
    assert!(matches!(kind(client.queued_jobs(&acme()).await), SourceErrorKind::RateLimited { .. }));
}

#[tokio::test]
async fn a_refused_token_is_read_again_and_is_never_shown() {
    let gitea = Gitea::start().await;
    let (old, new) = (gitea.owner_token().await, gitea.owner_token().await);
    let client = client_with(&gitea, &old);
    client.visible(&acme()).await.unwrap();
    gitea.tell("revoke", json!({"token": old})).await;
    private_file(&token_file(&gitea), &new);
    client.visible(&acme()).await.unwrap();
    gitea.tell("revoke", json!({"token": new})).await;
    let refused = client.visible(&acme()).await.unwrap_err();
    assert_eq!(refused.kind, SourceErrorKind::Refused);
    assert!(refused.detail.contains("does not accept the access token"), "{refused}");
    for text in [refused.to_string(), format!("{refused:?}"), format!("{client:?}")] {
        assert!(!text.contains(&new), "{text}");
    }
}

#[tokio::test]
async fn what_a_token_may_not_do_is_said_in_giteas_words() {
    let gitea = Gitea::start().await;
    gitea.tell("users", json!({"login": "dev"})).await;
    gitea.tell("orgs", json!({"name": "acme", "owners": ["someone"], "members": ["dev"]})).await;
    let client = client_with(&gitea, &gitea.token("dev", &["all"]).await);
    let refused = client.register(&acme(), "vm-1-1", &["mac".to_owned()]).await.unwrap_err();
    assert_eq!(refused.kind, SourceErrorKind::Refused);
    assert!(refused.detail.contains("the token's user must be an owner"), "{refused}");
    assert_eq!(kind(client.visible(&Scope::Instance).await), SourceErrorKind::Refused);
    // A scope that is not visible is no proof that a runner is gone.
    let unknown = Scope::organization("nobody").unwrap();
    assert_eq!(kind(client.runner(&unknown, 1).await), SourceErrorKind::Refused);
}
