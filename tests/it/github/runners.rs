//! Registering, looking, removing.

use base64::{Engine, engine::general_purpose::STANDARD};
use mayfly::sources::github::{DEFAULT_GROUP, GitHubClient, GitHubError, Removed, Scope, model::RunnerStatus};
use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::{asked, count, runner};
use crate::support::github::{GitHub, acme, app_repository};

#[tokio::test]
async fn a_runner_is_registered_seen_and_removed() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = github.client(&app);
    for scope in [acme(), app_repository()] {
        let made = client.generate_jit_config(&scope, &runner("vm-1")).await.unwrap();
        assert_eq!(made.runner.status, RunnerStatus::Offline);
        assert!(made.runner.has_labels(&["SELF-HOSTED".into(), "macos-15".into()]));
        let files: Value =
            serde_json::from_slice(&STANDARD.decode(made.encoded_jit_config.expose_secret()).unwrap()).unwrap();
        assert!(files[".runner"].is_string() && files[".credentials_rsaparams"].is_string());
        assert!(!format!("{made:?}").contains(made.encoded_jit_config.expose_secret()));

        let id = made.runner.id;
        assert_eq!(client.get_runner(&scope, id).await.unwrap().unwrap(), made.runner);
        assert_eq!(client.find_runner_by_name(&scope, "vm-1").await.unwrap().unwrap().id, id);
        assert_eq!(client.find_runner_by_name(&scope, "vm").await.unwrap(), None);
        assert_eq!(client.list_runners(&scope).await.unwrap().len(), 1);
        assert_eq!(client.delete_runner(&scope, id).await.unwrap(), Removed::Now);
        assert_eq!(client.delete_runner(&scope, id).await.unwrap(), Removed::Before);
        assert_eq!(client.get_runner(&scope, id).await.unwrap(), None);

        let token = client.registration_token(&scope).await.unwrap();
        assert!(token.expires_at > jiff::Timestamp::now() && !token.token.expose_secret().is_empty());
        client.remove_token(&scope).await.unwrap();
    }
    for request in github.requests().await {
        assert_eq!(request["version"], "2022-11-28", "{request}");
        assert_eq!(request["accept"], "application/vnd.github+json");
        assert!(request["user_agent"].as_str().unwrap().starts_with("mayfly/"));
    }
}

#[tokio::test]
async fn what_github_would_refuse_is_refused_with_its_reason() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = github.client(&app);
    client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap();
    let taken = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
    assert!(matches!(&taken, GitHubError::NameTaken { name, .. } if name == "vm-1"), "{taken}");
    let mut new = runner("vm-2");
    new.group = 99;
    let error = client.generate_jit_config(&acme(), &new).await.unwrap_err();
    assert!(matches!(error, GitHubError::NotVisible { .. }), "{error}");

    github.requests().await;
    let mut unlabelled = runner("vm-3");
    unlabelled.labels.clear();
    for new in [runner("has space"), runner(""), runner(&"x".repeat(65)), unlabelled] {
        let error = client.generate_jit_config(&acme(), &new).await.unwrap_err();
        assert!(matches!(error, GitHubError::Settings { .. }), "{error}");
    }
    assert!(github.requests().await.is_empty(), "nothing was sent");
}

/// The double is as strict as the real thing about what we never send.
#[tokio::test]
async fn the_double_checks_bodies() {
    let github = GitHub::start().await;
    let (_, token) = github.holder().await;
    let http = reqwest::Client::builder().no_proxy().user_agent("test").build().unwrap();
    let url = format!("{}/orgs/acme/actions/runners/generate-jitconfig", github.origin);
    for (body, said) in [
        (json!({"name": "a", "labels": ["x"]}), "Invalid input: object is missing required key: runner_group_id"),
        (
            json!({"name": "a", "runner_group_id": 1, "labels": []}),
            "Invalid property /labels: 1 item required; only 0 were supplied.",
        ),
    ] {
        let answer = http.post(&url).bearer_auth(&token).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 422);
        assert_eq!(answer.json::<Value>().await.unwrap()["message"], said);
    }
    let nameless = reqwest::Client::builder().no_proxy().build().unwrap();
    assert_eq!(nameless.post(&url).bearer_auth(&token).send().await.unwrap().status(), 403);
    let answer = http.get(&url).bearer_auth(&token).header("x-github-api-version", "1999-01-01").send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn a_lost_reply_leaves_a_runner_that_its_name_finds() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = github.client(&app);
    for then in [json!("lose_reply"), json!("truncate"), json!({"say": "<html>gateway hunter2</html>"})] {
        github.requests().await;
        github.fault("generate-jitconfig", then).await;
        let error = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
        assert!(error.maybe_done(), "{error}");
        assert!(!error.to_string().contains("hunter2"), "an answer that may be a secret is not shown: {error}");
        assert_eq!(count(&github.requests().await, "generate-jitconfig"), 1, "never twice under one name");

        let again = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
        assert!(matches!(again, GitHubError::NameTaken { .. }));
        client.generate_jit_config(&acme(), &runner("vm-1-2")).await.unwrap();
        for name in ["vm-1", "vm-1-2"] {
            let left = client.find_runner_by_name(&acme(), name).await.unwrap().unwrap();
            assert_eq!(client.delete_runner(&acme(), left.id).await.unwrap(), Removed::Now);
        }
    }
    github.fault("generate-jitconfig", json!("drop")).await;
    let error = client.generate_jit_config(&acme(), &runner("vm-2")).await.unwrap_err();
    assert!(error.maybe_done() && client.find_runner_by_name(&acme(), "vm-2").await.unwrap().is_none());
}

#[tokio::test]
async fn a_removal_whose_reply_was_lost_is_done() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let id = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap().runner.id;
    github.tell("faults", json!([{"method": "DELETE", "then": "lose_reply"}])).await;
    assert_eq!(client.delete_runner(&acme(), id).await.unwrap(), Removed::Before);
}

/// An Enterprise Server before 3.10: the runners are there, and the request is not.
#[tokio::test]
async fn a_server_without_just_in_time_configurations_is_named_as_such() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = GitHubClient::new(github.enterprise_options(), github.source(&app)).unwrap();
    github.fault("generate-jitconfig", json!({"answer": {"status": 404, "body": {"message": "Not Found"}}})).await;
    let error = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
    assert!(matches!(error, GitHubError::Refused { status: 404, .. }), "{error}");
    let text = error.to_string();
    assert!(text.contains("just-in-time") && text.contains("registration_token"), "{text}");
}

#[tokio::test]
async fn a_runner_with_a_job_stays() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    github.tell("knobs", json!({"busy_lag_seconds": 30})).await;
    let id = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap().runner.id;
    github.tell(&format!("runner/{id}"), json!({"online": true, "busy": true})).await;
    let seen = client.get_runner(&acme(), id).await.unwrap().unwrap();
    assert_eq!((seen.status, seen.busy), (RunnerStatus::Online, false), "what is seen lags");
    let error = client.delete_runner(&acme(), id).await.unwrap_err();
    assert!(matches!(error, GitHubError::RunnerBusy { runner, .. } if runner == id), "{error}");
    assert!(error.passes());
    github.advance(31).await;
    assert!(client.get_runner(&acme(), id).await.unwrap().unwrap().busy);
}

#[tokio::test]
async fn gone_is_said_only_while_the_scope_can_be_seen() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let id = client.generate_jit_config(&app_repository(), &runner("vm-1")).await.unwrap().runner.id;
    // Taken out of the installation's sight: every path gives 404 now.
    github.tell("faults", json!([{"path": "actions/runners", "times": 4, "then": {"answer": {"status": 404}}}])).await;
    let error = client.get_runner(&app_repository(), id).await.unwrap_err();
    assert!(matches!(error, GitHubError::NotVisible { .. }), "{error}");
    let error = client.delete_runner(&app_repository(), id).await.unwrap_err();
    assert!(matches!(error, GitHubError::NotVisible { .. }), "{error}");
    assert!(client.get_runner(&app_repository(), id).await.unwrap().is_some());
}

#[tokio::test]
async fn all_of_250_runners_are_listed_and_cost_nothing_again() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    github.tell("runners", json!({"place": "orgs/acme", "count": 250, "prefix": "r", "labels": ["x"]})).await;
    let all = client.list_runners(&acme()).await.unwrap();
    assert_eq!(all.len(), 250);
    assert_eq!(all.iter().map(|r| r.id).collect::<std::collections::BTreeSet<_>>().len(), 250);
    let pages = github.requests().await;
    assert_eq!(count(&pages, "/actions/runners"), 3);
    let remaining = |client: &mayfly::sources::github::GitHubClient| {
        let budget = client.budgets().into_iter().find(|b| b.credential.starts_with("installation")).unwrap();
        (budget.resources[0].remaining, budget.not_modified)
    };
    let (left, _) = remaining(&client);

    assert_eq!(client.list_runners(&acme()).await.unwrap(), all);
    assert_eq!(remaining(&client), (left, 3), "three pages that had not changed");
    for page in github.requests().await {
        assert!(page["if_none_match"].is_string() && page["status"] == 304, "{page}");
    }

    client.delete_runner(&acme(), all[249].id).await.unwrap();
    assert_eq!(client.list_runners(&acme()).await.unwrap().len(), 249);
}

#[tokio::test]
async fn pages_that_lead_astray_are_not_followed() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let page = json!({"total_count": 1, "runners": []});
    for link in ["<https://elsewhere.example/orgs/acme/actions/runners?page=2>; rel=\"next\"", "<//x/y>; rel=\"next\""]
    {
        let then = json!({"answer": {"status": 200, "headers": {"link": link}, "body": page}});
        github.fault("actions/runners", then).await;
        let error = client.list_runners(&acme()).await.unwrap_err();
        assert!(matches!(&error, GitHubError::Unparsable { found, .. } if found.contains("another server")), "{error}");
    }
    let round = format!("<{}/orgs/acme/actions/runners?per_page=100>; rel=\"next\"", github.origin);
    let then = json!({"answer": {"status": 200, "headers": {"link": round}, "body": page}});
    github.tell("faults", json!([{"path": "actions/runners", "times": 3, "then": then}])).await;
    let error = client.list_runners(&acme()).await.unwrap_err();
    assert!(error.to_string().contains("without an end"), "{error}");
}

#[tokio::test]
async fn answers_are_read_as_they_come() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    github.tell("knobs", json!({"unknown_keys": true, "omit_optional": true, "lower_case_labels": true})).await;
    let made = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap().runner;
    assert_eq!((made.version.as_deref(), made.ephemeral, made.runner_group_id), (None, None, None));
    assert!(made.has_labels(&["macOS-15".into()]), "{made:?}");
}

#[tokio::test]
async fn groups_are_found_by_name_and_cached() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    github.tell("groups", json!({"place": "orgs/acme", "names": ["macs", "linuxes"]})).await;
    let macs = client.runner_group_id(&acme(), "Macs").await.unwrap().unwrap();
    assert_eq!(client.runner_group_id(&acme(), "default").await.unwrap(), Some(DEFAULT_GROUP));
    assert_ne!(client.runner_group_id(&acme(), "linuxes").await.unwrap().unwrap(), macs);
    assert_eq!(count(&github.requests().await, "runner-groups"), 1);
    assert_eq!(client.runner_group_id(&acme(), "nobody's").await.unwrap(), None);
    github.tell("groups", json!({"place": "orgs/acme", "names": ["nobody's"]})).await;
    assert!(client.runner_group_id(&acme(), "nobody's").await.unwrap().is_some(), "one that was made since is found");
    assert_eq!(client.runner_group_id(&app_repository(), "Default").await.unwrap(), Some(1));
    assert_eq!(client.runner_group_id(&app_repository(), "macs").await.unwrap(), None);
    let mut new = runner("vm-1");
    new.group = macs;
    assert_eq!(client.generate_jit_config(&acme(), &new).await.unwrap().runner.runner_group_id, Some(macs));
}

#[tokio::test]
async fn an_enterprise_takes_a_classic_token() {
    let github = GitHub::start().await;
    github.tell("places", json!({"places": ["enterprises/acme-corp"]})).await;
    let told = json!({"classic": "manage_runners:enterprise", "sees": ["acme-corp"]});
    let token = github.tell("tokens", told).await["token"].as_str().unwrap().to_owned();
    let source = mayfly::sources::github::CredentialLocation::Token(token.into());
    let client = mayfly::sources::github::GitHubClient::new(github.options(), source).unwrap();
    let scope = Scope::enterprise("acme-corp").unwrap();
    let id = client.generate_jit_config(&scope, &runner("vm-1")).await.unwrap().runner.id;
    assert_eq!(client.runner_groups(&scope).await.unwrap().len(), 1);
    assert_eq!(client.delete_runner(&scope, id).await.unwrap(), Removed::Now);
    assert_eq!(asked(&github.requests().await)[0], "POST /enterprises/acme-corp/actions/runners/generate-jitconfig");
}
