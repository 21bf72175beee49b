//! Redirects, certificates, servers in trouble, Enterprise Servers.

use std::sync::{Arc, Mutex};

use mayfly::sources::github::{CredentialLocation, GitHubClient, GitHubError, Removed, Scope, Server};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{asked, count, runner};
use crate::support::{
    authority::Authority,
    github::{GitHub, acme, app_repository},
};

/// Another server with a certificate of a private authority, that answers everything with this and keeps what it was sent.
async fn elsewhere(authority: &Authority, answer: &'static str) -> (String, Arc<Mutex<Vec<String>>>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(authority.issue().server());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let origin = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = heads.clone();
    tokio::spawn(async move {
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
            let mut head = Vec::new();
            while !head.windows(4).any(|w| w == b"\r\n\r\n") {
                let mut piece = [0; 4096];
                match tls.read(&mut piece).await {
                    Ok(n) if n > 0 => head.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            kept.lock().unwrap().push(String::from_utf8_lossy(&head).into_owned());
            let _ = tls.write_all(answer.as_bytes()).await;
            let _ = tls.shutdown().await;
        }
    });
    (origin, heads)
}

const NO_RUNNERS: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 31\r\nconnection: close\r\n\r\n\
                          {\"total_count\":0,\"runners\":[]}\n";
const UNAUTHORIZED: &str = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn a_repository_that_was_renamed_is_followed() {
    let github = GitHub::start().await;
    let client = github.client(&github.app().await);
    let id = client.generate_jit_config(&app_repository(), &runner("vm-1")).await.unwrap().runner.id;
    github.tell("rename", json!({"from": "repos/acme/app", "to": "repos/acme/new"})).await;
    github.requests().await;
    assert_eq!(client.get_runner(&app_repository(), id).await.unwrap().unwrap().id, id);
    client.generate_jit_config(&app_repository(), &runner("vm-2")).await.unwrap();
    assert_eq!(client.delete_runner(&app_repository(), id).await.unwrap(), Removed::Now);
    assert_eq!(
        asked(&github.requests().await),
        [
            format!("GET /repos/acme/app/actions/runners/{id}"),
            format!("GET /repos/acme/new/actions/runners/{id}"),
            "POST /repos/acme/app/actions/runners/generate-jitconfig".to_owned(),
            "POST /repos/acme/new/actions/runners/generate-jitconfig".to_owned(),
            format!("DELETE /repos/acme/app/actions/runners/{id}"),
            format!("DELETE /repos/acme/new/actions/runners/{id}"),
        ]
    );
    let left = client.list_runners(&Scope::repository("acme/new").unwrap()).await.unwrap();
    assert_eq!(left.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(), ["vm-2"], "the body went along");
}

#[tokio::test]
async fn a_token_does_not_go_along_to_another_host() {
    let github = GitHub::start().await;
    let authority = Authority::new();
    let (_, token) = github.holder().await;
    for (answer, refused) in [(NO_RUNNERS, false), (UNAUTHORIZED, true)] {
        let (origin, heads) = elsewhere(&authority, answer).await;
        // A server on this host is reached only if the configuration names it.
        let server = Server::new(&origin, Some(&github.origin)).unwrap();
        let mut options = github.options_of(server);
        options.ca_file = Some(authority.file());
        let client = GitHubClient::new(options, CredentialLocation::Token(token.clone().into())).unwrap();
        let then = json!({"answer": {"status": 307, "headers": {"location": format!("{origin}/moved?x=1")}}});
        github.fault("actions/runners", then).await;
        let listed = client.find_runner_by_name(&acme(), answer.get(9..12).unwrap()).await;
        assert_eq!(matches!(listed, Err(GitHubError::BadCredentials { .. })), refused, "{listed:?}");
        let heads = heads.lock().unwrap();
        assert_eq!(heads.len(), 1, "a refusal of others is no reason to ask again");
        assert!(heads[0].starts_with("GET /moved?x=1 "), "{}", heads[0]);
        let lower = heads[0].to_lowercase();
        assert!(!lower.contains("authorization") && !heads[0].contains(&token), "{}", heads[0]);
    }
}

/// The loopback interface of this host is the service's own, not GitHub's.
#[tokio::test]
async fn a_redirect_to_this_host_is_not_followed() {
    let github = GitHub::start().await;
    let authority = Authority::new();
    let (_, token) = github.holder().await;
    let (origin, heads) = elsewhere(&authority, NO_RUNNERS).await;
    let mut options = github.options();
    options.ca_file = Some(authority.file());
    let client = GitHubClient::new(options, CredentialLocation::Token(token.into())).unwrap();
    for location in
        [format!("{origin}/x"), origin.replace("localhost", "127.0.0.1"), "https://169.254.169.254/x".into()]
    {
        let then = json!({"answer": {"status": 307, "headers": {"location": location}}});
        github.tell("faults", json!([{"path": "actions/runners", "times": 24, "then": then}])).await;
        let error = client.visible(&acme()).await.unwrap_err();
        assert!(error.to_string().contains("has an address that is not public"), "{error}");
        // What is left of the faults.
        while matches!(client.visible(&acme()).await, Err(GitHubError::Unavailable { .. })) {}
    }
    assert!(heads.lock().unwrap().is_empty());
}

#[tokio::test]
async fn redirects_that_must_not_be_followed_are_not() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    let to = |location: &str, status: u16, times: u32| {
        let then = json!({"answer": {"status": status, "headers": {"location": location}}});
        json!([{"path": "actions/runners", "times": times, "then": then}])
    };
    // Into the clear, and round and round.
    let plain = "http://127.0.0.2:9/x".to_owned();
    let itself = format!("{}/orgs/acme/actions/runners", github.origin);
    for (location, why) in [(plain, "not https"), (itself, "too many redirects")] {
        github.tell("faults", to(&location, 302, 24)).await;
        let error = client.visible(&acme()).await.unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
        // What is left of the faults.
        while matches!(client.visible(&acme()).await, Err(GitHubError::Unavailable { .. })) {}
    }
    // A change would become a look, and be taken for done.
    github.tell("faults", to("/elsewhere", 301, 1)).await;
    github.requests().await;
    let error = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
    assert!(matches!(error, GitHubError::Refused { status: 301, .. }), "{error}");
    assert_eq!(github.requests().await.len(), 1);
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_named() {
    let github = GitHub::start().await;
    let authority = Authority::new();
    let (origin, heads) = elsewhere(&authority, NO_RUNNERS).await;
    let mut options = github.options_of(Server::new(&origin, None).unwrap());
    let source = CredentialLocation::Token("ghp_x".to_owned().into());
    let error = GitHubClient::new(options.clone(), source.clone()).unwrap().list_runners(&acme()).await.unwrap_err();
    assert!(matches!(error, GitHubError::Unavailable { sent: false, .. }), "{error}");
    options.ca_file = Some(authority.file());
    let client = GitHubClient::new(options.clone(), source.clone()).unwrap();
    assert_eq!(client.list_runners(&acme()).await.unwrap(), []);
    assert!(heads.lock().unwrap()[0].starts_with("GET /api/v3/orgs/acme/actions/runners?"));
    options.ca_file = Some(github.dir().join("none.pem"));
    let error = GitHubClient::new(options, source).unwrap_err();
    assert!(error.to_string().contains("none.pem"), "{error}");
}

#[tokio::test]
async fn requests_to_a_failing_server_are_retried_where_that_is_safe() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    let trouble = |status: u16, times: u32| json!([{"path": "actions/runners", "times": times, "then": {"answer": {"status": status, "body": {"message": "Unicorn!"}}}}]);
    github.tell("faults", trouble(503, 3)).await;
    client.visible(&acme()).await.unwrap();
    assert_eq!(count(&github.requests().await, "/actions/runners"), 4);
    github.tell("faults", trouble(502, 4)).await;
    let error = client.visible(&acme()).await.unwrap_err();
    assert!(matches!(&error, GitHubError::Unavailable { cause, .. } if cause == "502 Unicorn!"), "{error}");
    github.tell("faults", json!([{"path": "actions/runners", "times": 3, "then": "drop"}])).await;
    client.visible(&acme()).await.unwrap();

    github.requests().await;
    github.tell("faults", trouble(500, 1)).await;
    let error = client.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
    assert!(error.maybe_done(), "{error}");
    assert_eq!(github.requests().await.len(), 1);
    // Where nobody is, nothing was done.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let options = github.options_of(Server::new(&format!("http://127.0.0.1:{port}"), None).unwrap());
    let nobody = GitHubClient::new(options, CredentialLocation::Token("ghp_x".to_owned().into())).unwrap();
    let error = nobody.generate_jit_config(&acme(), &runner("vm-1")).await.unwrap_err();
    assert!(matches!(error, GitHubError::Unavailable { sent: false, .. }) && !error.maybe_done(), "{error}");
}

#[tokio::test]
async fn what_was_not_understood_is_an_error_that_shows_its_beginning() {
    let github = GitHub::start().await;
    let (client, _) = github.holder().await;
    let page = format!("<html>\u{1b}[31m{}</html>", "x".repeat(5000));
    github.fault("actions/runners", json!({"say": page})).await;
    let error = client.list_runners(&acme()).await.unwrap_err();
    let GitHubError::Unparsable { found, .. } = &error else { panic!("{error}") };
    assert!(found.contains("<html>") && found.len() < 400 && !found.contains('\u{1b}'), "{found}");
    let wrong = json!({"answer": {"status": 200, "body": {"total_count": 1, "runners": [{"id": "7"}]}}});
    github.fault("actions/runners", wrong).await;
    let error = client.list_runners(&acme()).await.unwrap_err();
    assert!(error.to_string().contains("runners[0].id"), "{error}");
    // An answer of the wrong kind of success.
    github.fault("actions/runners", json!({"answer": {"status": 202, "body": {}}})).await;
    assert!(matches!(client.list_runners(&acme()).await.unwrap_err(), GitHubError::Unparsable { .. }));
}

#[tokio::test]
async fn an_enterprise_server_has_another_path_and_no_limits() {
    let github = GitHub::start().await;
    github.tell("knobs", json!({"rate_limit": null})).await;
    let app = github.app().await;
    let client = GitHubClient::new(github.enterprise_options(), github.source(&app)).unwrap();
    github.tell("runners", json!({"place": "orgs/acme", "count": 150, "prefix": "r", "labels": []})).await;
    assert_eq!(client.list_runners(&acme()).await.unwrap().len(), 150);
    assert_eq!(client.rate_limit(Some(&acme())).await.unwrap(), []);
    assert_eq!(client.observed().enterprise_version.as_deref(), Some("3.17.2"));
    assert!(client.budgets().iter().all(|b| b.resources.is_empty() && b.requests > 0));
    assert!(github.requests().await.iter().all(|r| r["enterprise"] == true));
}
