//! The admin token of the command line on this machine, and how it is replaced.

use std::{os::unix::fs::PermissionsExt, path::Path};

use reqwest::Method;
use serde_json::Value;

use super::{Mayfly, Ran};
use crate::support::Serve;

const FAKE: [(&str, &str); 2] = [("MAYFLY_DRIVERS__QEMU__ENABLED", "false"), ("MAYFLY_DRIVERS__FAKE__ENABLED", "true")];

async fn run(serve: &Serve, args: &[&str]) -> Ran {
    Mayfly::new().run(&[args, &["--data-dir", serve.dir.to_str().unwrap()]].concat()).await
}

fn token(file: &Path) -> String {
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

async fn status(serve: &Serve, token: &str) -> u16 {
    serve.send_as(token, Method::GET, "/vms", None).await.0
}

/// The tokens that are valid under its name.
async fn valid(serve: &Serve, with: &str) -> usize {
    let (_, tokens) = serve.send_as(with, Method::GET, "/tokens", None).await;
    let valid = |token: &&Value| token["name"] == "local-admin" && token["revoked_at"].is_null();
    tokens["items"].as_array().unwrap().iter().filter(valid).count()
}

#[tokio::test]
async fn one_command_replaces_the_token_even_when_it_is_no_longer_valid() {
    let serve = Serve::start(&FAKE).await;
    let file = serve.dir.join("admin.token");
    let old = token(&file);
    let ran = run(&serve, &["token", "rotate-local"]).await.ends(0);
    let new = token(&file);
    assert!(ran.out.starts_with("local-admin  ") && !ran.out.contains(&new) && !ran.err.contains(&new), "{}", ran.out);
    assert_eq!((status(&serve, &old).await, status(&serve, &new).await), (401, 200));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(valid(&serve, &new).await, 1);
    assert!(!serve.log().contains(&new));

    // Whoever revokes it learns how to get another one.
    let ran = run(&serve, &["token", "revoke", "local-admin"]).await.ends(0);
    assert!(ran.err.contains("mayfly token rotate-local"), "{}", ran.err);
    let ran = run(&serve, &["vm", "list"]).await.ends(5);
    assert!(ran.err.contains("mayfly token rotate-local"), "{}", ran.err);
    let (status_of, problem) = serve.send_as(&new, Method::POST, "/tokens/local-admin/rotate", None).await;
    assert_eq!((status_of, problem["code"].as_str()), (401, Some("auth.required")), "over TCP a token is needed");
    run(&serve, &["token", "rotate-local", "--json"]).await.ends(0).json();
    run(&serve, &["vm", "list"]).await.ends(0);
    std::fs::remove_file(&file).unwrap();
    run(&serve, &["token", "rotate-local"]).await.ends(0);
    assert_eq!(valid(&serve, &token(&file)).await, 1);
}

#[tokio::test]
async fn a_start_completes_what_a_crash_interrupted() {
    let mut serve = Serve::start(&FAKE).await;
    let (file, next) = (serve.dir.join("admin.token"), serve.dir.join("admin.token.next"));
    let first = token(&file);
    run(&serve, &["token", "rotate-local"]).await.ends(0);
    let second = token(&file);

    // Died after the database had accepted the new one, and before the file was renamed.
    serve.kill();
    std::fs::write(&next, format!("{second}\n")).unwrap();
    std::fs::write(&file, format!("{first}\n")).unwrap();
    serve.spawn().await;
    assert_eq!(token(&file), second);
    assert!(!next.exists());
    assert_eq!(status(&serve, &second).await, 200);

    // Died before the database had heard of it.
    serve.kill();
    std::fs::write(&next, "mfa_never-stored\n").unwrap();
    serve.spawn().await;
    assert_eq!(token(&file), second);
    assert!(!next.exists());

    // Revoked on purpose: a start does not undo that, and says what would.
    let (_, tokens) = serve.send_as(&second, Method::GET, "/tokens", None).await;
    let local = tokens["items"].as_array().unwrap().iter().find(|token| token["revoked_at"].is_null()).unwrap();
    serve.send_as(&second, Method::DELETE, &format!("/tokens/{}", local["id"].as_str().unwrap()), None).await;
    serve.kill();
    serve.spawn().await;
    assert_eq!(status(&serve, &second).await, 401);
    assert!(serve.log().contains("mayfly token rotate-local"), "{}", serve.log());
}
