//! What GitHub allows, and what is done when it is spent.

use std::time::Duration;

use mayfly::sources::github::{CredentialLocation, GitHubClient, GitHubError, GitHubLimit};
use serde_json::json;

use super::{count, runner};
use crate::support::github::{GitHub, acme};

fn limited(error: GitHubError) -> (GitHubLimit, jiff::Timestamp) {
    match error {
        GitHubError::RateLimited { limit, until, .. } => (limit, until),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_spent_primary_limit_is_kept_to_until_it_is_over() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    github.tell("knobs", json!({"rate_limit": 2})).await;
    client.list_runners(&acme()).await.unwrap();
    // The same again costs nothing; a new question does.
    client.list_runners(&acme()).await.unwrap();
    client.find_runner_by_name(&acme(), "a").await.unwrap();
    github.requests().await;
    let (limit, until) = limited(client.find_runner_by_name(&acme(), "b").await.unwrap_err());
    assert_eq!(limit, GitHubLimit::Primary);
    assert!(github.requests().await.is_empty(), "nothing is sent that is known to be refused");
    let view = &client.budgets()[0];
    assert_eq!((view.credential.as_str(), view.resources[0].remaining, view.resources[0].limit), ("token", 0, 2));
    assert_eq!(view.not_modified, 1);
    // Asking for the limits is free.
    let limits = client.rate_limit(None).await.unwrap();
    assert_eq!((limits[0].resource.as_str(), limits[0].remaining), ("core", 0));
    let wait = until.duration_since(jiff::Timestamp::now()).as_secs();
    assert!((3500..=3605).contains(&wait), "{wait}");
    github.advance(wait + 3).await;
    client.find_runner_by_name(&acme(), "b").await.unwrap();
}

#[tokio::test]
async fn a_limit_that_others_spent_is_read_from_the_refusal() {
    let github = GitHub::start().await;
    let (client, token) = github.holder().await;
    let other = GitHubClient::new(github.options(), CredentialLocation::Token(token.into())).unwrap();
    github.tell("knobs", json!({"rate_limit": 1})).await;
    other.visible(&acme()).await.unwrap();
    let (limit, _) = limited(client.visible(&acme()).await.unwrap_err());
    assert_eq!((limit, client.budgets()[0].limited), (GitHubLimit::Primary, 1));
}

#[tokio::test]
async fn registrations_are_counted_apart() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    github.tell("knobs", json!({"registration_limit": 1})).await;
    client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap();
    assert_eq!(
        limited(client.generate_jit_config(&acme(), &runner("vm-2")).await.unwrap_err()).0,
        GitHubLimit::Primary
    );
    assert_eq!(client.list_runners(&acme()).await.unwrap().len(), 1, "looking is still allowed");
    let names: Vec<String> = client.budgets()[0].resources.iter().map(|r| r.resource.clone()).collect();
    assert_eq!(names, ["actions_runner_registration", "core"]);
}

#[tokio::test]
async fn a_secondary_limit_stops_everything_for_as_long_as_it_says() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    let said = json!({"message": "You have exceeded a secondary rate limit. Please wait."});
    let with = json!({"answer": {"status": 403, "headers": {"retry-after": "30"}, "body": said}});
    github.fault("actions/runners", with).await;
    assert_eq!(limited(client.visible(&acme()).await.unwrap_err()).0, GitHubLimit::Secondary);
    github.requests().await;
    limited(client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err());
    assert!(github.requests().await.is_empty());
    assert!(client.budgets()[0].closed_until.is_some());
    github.advance(31).await;
    client.visible(&acme()).await.unwrap();

    for status in [403, 429] {
        let without = json!({"answer": {"status": status, "body": said}});
        github.fault("actions/runners", without).await;
        let before = jiff::Timestamp::now();
        let (_, until) = limited(client.visible(&acme()).await.unwrap_err());
        // Our clock is ahead by what was added so far; of a minute at least nothing is taken.
        assert!(until.duration_since(before).as_secs() >= 60, "{until}");
        github.advance(80).await;
        client.visible(&acme()).await.unwrap();
    }
}

#[tokio::test]
async fn a_short_limit_is_waited_for() {
    let github = GitHub::start().await;
    let (_, token) = github.holder().await;
    let mut options = github.options();
    options.patience = Duration::from_secs(5);
    let client = GitHubClient::new(options, CredentialLocation::Token(token.into())).unwrap();
    let with = json!({"answer": {"status": 429, "headers": {"retry-after": "1"}, "body": {}}});
    github.fault("generate-jitconfig", with.clone()).await;
    client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap();
    // But not for ever.
    github.tell("faults", json!([{"path": "actions/runners", "times": 9, "then": with}])).await;
    github.requests().await;
    limited(client.visible(&acme()).await.unwrap_err());
    assert_eq!(count(&github.requests().await, "/actions/runners"), 3);
}

#[tokio::test]
async fn a_refusal_that_is_not_about_limits_is_not_repeated() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    let no = json!({"message": "Must have admin rights to Repository."});
    let then = json!({"answer": {"status": 403, "headers": {"x-accepted-oauth-scopes": "admin:org"}, "body": no}});
    github.fault("actions/runners", then).await;
    let error = client.visible(&acme()).await.unwrap_err();
    assert!(error.to_string().contains("(needs admin:org): Must have admin rights"), "{error}");
    assert_eq!(count(&github.requests().await, "/actions/runners"), 1);
}

#[tokio::test]
async fn changes_keep_their_distance() {
    let github = GitHub::start().await;
    let (_, token) = github.holder().await;
    let mut options = github.options();
    options.write_gap = Duration::from_millis(200);
    let client = GitHubClient::new(options, CredentialLocation::Token(token.into())).unwrap();
    let (scope, start) = (acme(), std::time::Instant::now());
    let news = [runner("a"), runner("b"), runner("c")];
    let made = futures_util::future::join_all(news.iter().map(|new| client.generate_jit_config(&scope, new))).await;
    assert!(made.iter().all(Result::is_ok));
    assert!(start.elapsed() >= Duration::from_millis(400), "{:?}", start.elapsed());
}
