//! Who we are: Apps and their tokens, personal tokens, and what is refused to them.

use std::{
    io,
    sync::{Arc, Mutex},
};

use mayfly::sources::github::{CredentialLocation, GitHubClient, GitHubError, Scope};
use secrecy::ExposeSecret;
use serde_json::json;

use super::{count, runner};
use crate::support::github::{GitHub, acme, all_permissions, app_repository, private_file};

#[tokio::test]
async fn a_token_is_made_once_and_renewed_before_its_end() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    for _ in 0..3 {
        client.visible(&acme()).await.unwrap();
    }
    let requests = github.requests().await;
    assert_eq!(count(&requests, "/installation"), 1);
    assert_eq!(count(&requests, "/access_tokens"), 1);
    github.advance(54 * 60).await;
    client.visible(&acme()).await.unwrap();
    assert_eq!(count(&github.requests().await, "/access_tokens"), 0);
    github.advance(2 * 60).await;
    client.visible(&acme()).await.unwrap();
    let requests = github.requests().await;
    assert_eq!(count(&requests, "/access_tokens"), 1, "less than five minutes were left");
    assert!(requests.iter().all(|r| r["status"] != 401));
}

#[tokio::test]
async fn many_at_once_share_one_renewal() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let scope = acme();
    let all = futures_util::future::join_all((0..30).map(|_| client.visible(&scope))).await;
    assert!(all.iter().all(Result::is_ok), "{all:?}");
    assert_eq!(count(&github.requests().await, "/access_tokens"), 1);
}

#[tokio::test]
async fn a_token_that_ended_early_is_renewed_once() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    client.visible(&acme()).await.unwrap();
    github.advance(10).await;
    github.tell("expire-tokens", json!({})).await;
    github.requests().await;
    // A change, too: who is not known was not heard.
    client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap();
    let requests = github.requests().await;
    assert_eq!((count(&requests, "/access_tokens"), count(&requests, "generate-jitconfig")), (1, 2));

    github.advance(10).await;
    let refused = json!({"answer": {"status": 401, "body": {"message": "Bad credentials"}}});
    github.tell("faults", json!([{"path": "actions/runners", "times": 9, "then": refused}])).await;
    let error = client.visible(&acme()).await.unwrap_err();
    assert!(matches!(&error, GitHubError::BadCredentials { said, .. } if said == "Bad credentials"), "{error}");
    let requests = github.requests().await;
    assert_eq!((count(&requests, "/access_tokens"), count(&requests, "/actions/runners")), (1, 2), "once, and no more");
}

#[tokio::test]
async fn a_new_token_that_is_not_known_everywhere_is_tried_again() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    client.visible(&acme()).await.unwrap();
    github.tell("unknown-tokens", json!({})).await;
    github.requests().await;
    client.visible(&acme()).await.unwrap();
    let requests = github.requests().await;
    assert_eq!((count(&requests, "/access_tokens"), count(&requests, "/actions/runners")), (0, 2));
}

#[tokio::test]
async fn a_token_may_do_no_more_than_its_call_takes() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = github.client(&app);
    client.visible(&acme()).await.unwrap();
    client.visible(&app_repository()).await.unwrap();
    client.runs(&app_repository(), "queued").await.unwrap();
    assert_eq!(count(&github.requests().await, "/access_tokens"), 3, "one per permission");

    let less = json!({"organization_self_hosted_runners": "read", "metadata": "read"});
    let app = github.app_with(less, json!([])).await;
    let source = CredentialLocation::AppKeyFile {
        app_id: app.id.to_string(),
        installation: Some(app.installation),
        path: app.key_file.clone(),
    };
    let client = GitHubClient::new(github.options(), source).unwrap();
    let error = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
    let GitHubError::MissingPermission { accepted, .. } = &error else { panic!("{error}") };
    assert_eq!(accepted.as_deref(), Some("organization_self_hosted_runners=write"));
    assert_eq!(count(&github.requests().await, "/installation"), 0, "the installation was configured");
}

#[tokio::test]
async fn both_forms_of_the_key_and_both_names_of_the_app_are_taken() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let pkcs8 = github.dir().join("pkcs8.pem");
    private_file(&pkcs8, &app.pkcs8);
    for (app_id, path) in [(app.client_id.clone(), &pkcs8), (app.id.to_string(), &app.key_file)] {
        let source = CredentialLocation::AppKeyFile { app_id, installation: None, path: path.clone() };
        let client = GitHubClient::new(github.options(), source).unwrap();
        assert_eq!(client.app().await.unwrap().id, app.id);
        assert_eq!(client.installations().await.unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_seen_and_refused() {
    let github = GitHub::start().await;
    let app = github.app().await;
    for seconds in [-50, 50 + 40] {
        github.skew(seconds);
        github.client(&app).app().await.unwrap();
    }
    github.skew(-40);
    // 40 seconds less: we are level with GitHub now, and then ten minutes ahead.
    github.skew(600);
    let client = github.client(&app);
    let error = client.app().await.unwrap_err();
    assert!(matches!(&error, GitHubError::BadCredentials { said, .. } if said.contains("'Issued at'")), "{error}");
    let ahead = client.observed().clock_ahead.unwrap().as_secs();
    assert!((595..=605).contains(&ahead), "{ahead}");
    github.skew(-1200);
    let error = github.client(&app).app().await.unwrap_err();
    assert!(error.to_string().contains("'Expiration time'"), "{error}");
}

#[tokio::test]
async fn an_app_that_is_not_there_or_not_ours() {
    let github = GitHub::start().await;
    let app = github.app().await;
    let client = github.client(&app);
    let other = Scope::organization("other").unwrap();
    let error = client.visible(&other).await.unwrap_err();
    assert!(error.to_string().contains("the App's installation in the organisation other"), "{error}");

    let key = github.tell("apps", json!({"permissions": {}, "events": []})).await;
    let path = github.dir().join("other.pem");
    private_file(&path, key["pkcs1"].as_str().unwrap());
    for (app_id, path) in [(app.client_id.clone(), path.clone()), ("Iv23nobody".to_owned(), path)] {
        let source = CredentialLocation::AppKeyFile { app_id, installation: None, path };
        let error = GitHubClient::new(github.options(), source).unwrap().app().await.unwrap_err();
        assert!(matches!(error, GitHubError::BadCredentials { .. } | GitHubError::NotVisible { .. }), "{error}");
    }
    github.tell("suspend", json!({"installation": app.installation})).await;
    let error = client.visible(&acme()).await.unwrap_err();
    assert!(matches!(&error, GitHubError::MissingPermission { said, .. } if said.contains("suspended")), "{error}");
}

#[tokio::test]
async fn what_a_personal_token_lacks_is_named() {
    let github = GitHub::start().await;
    for (token, accepted) in [
        (json!({"classic": "repo", "sees": ["acme"]}), "admin:org"),
        (json!({"fine_grained": {"metadata": "read"}, "sees": ["acme"]}), "organization_self_hosted_runners=write"),
    ] {
        let token = github.tell("tokens", token).await["token"].as_str().unwrap().to_owned();
        let client = GitHubClient::new(github.options(), CredentialLocation::Token(token.clone().into())).unwrap();
        let error = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
        let GitHubError::MissingPermission { accepted: found, .. } = &error else { panic!("{error}") };
        assert_eq!(found.as_deref(), Some(accepted));
        assert!(!error.to_string().contains(&token) && !format!("{client:?}").contains(&token));
        let error = client.list_runners(&Scope::organization("other").unwrap()).await.unwrap_err();
        assert!(matches!(error, GitHubError::NotVisible { .. }), "{error}");
        assert!(matches!(client.app().await.unwrap_err(), GitHubError::Settings { .. }));
    }
}

#[tokio::test]
async fn a_token_or_key_that_was_changed_on_disk_needs_no_restart() {
    let github = GitHub::start().await;
    let (_, old) = github.holder().await;
    let (_, new) = github.holder().await;
    let path = github.dir().join("token");
    private_file(&path, &old);
    let client = GitHubClient::new(github.options(), CredentialLocation::TokenFile(path.clone())).unwrap();
    client.visible(&acme()).await.unwrap();
    github.tell("revoke", json!({"token": old})).await;
    assert!(matches!(client.visible(&acme()).await.unwrap_err(), GitHubError::BadCredentials { .. }));
    private_file(&path, &format!("{new}\n"));
    client.visible(&acme()).await.unwrap();

    let app = github.app_with(all_permissions(), json!([])).await;
    let good = std::fs::read_to_string(&app.key_file).unwrap();
    let other = github.tell("apps", json!({"permissions": {}, "events": []})).await;
    private_file(&app.key_file, other["pkcs1"].as_str().unwrap());
    let client = github.client(&app);
    assert!(matches!(client.app().await.unwrap_err(), GitHubError::BadCredentials { .. }));
    private_file(&app.key_file, &good);
    client.app().await.unwrap();
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn nothing_secret_is_logged_at_any_level() {
    let log = Kept::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let github = GitHub::start().await;
    let app = github.app().await;
    let (holder, token) = github.holder().await;
    log.0.lock().unwrap().clear();
    let client = github.client(&app);
    github.fault("actions/runners", json!({"answer": {"status": 503}})).await;
    client.visible(&acme()).await.unwrap();
    holder.visible(&acme()).await.unwrap();
    let jit = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap().encoded_jit_config;
    let registration = client.registration_token(&acme()).await.unwrap().token;
    let log = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(log.contains("retrying a request to GitHub"), "{log}");
    let key = std::fs::read_to_string(&app.key_file).unwrap();
    for secret in
        ["ghs_", "eyJ", &token, jit.expose_secret(), registration.expose_secret(), key.lines().nth(1).unwrap()]
    {
        assert!(!log.contains(secret), "{secret:.8} is in the log");
    }
}
