//! Webhooks.

use axum::{body::Bytes, http::HeaderMap};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::header;
use crate::support::{
    gitea::{Gitea, SECRET, receiver},
    github::signature,
};

type Arrived = UnboundedReceiver<(HeaderMap, Bytes)>;

async fn next(from: &mut Arrived) -> (HeaderMap, Value) {
    let arrived = tokio::time::timeout(std::time::Duration::from_secs(20), from.recv()).await;
    let (headers, body) = arrived.expect("in time").unwrap();
    assert_eq!(header(&headers, "x-hub-signature-256"), signature(SECRET, &body));
    (headers, serde_json::from_slice(&body).unwrap())
}

fn real(name: &str) -> Value {
    let path = format!("{}/tests/fixtures/gitea/workflow_job_{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// Without what differs between two servers: addresses, times that have come, checksums, sizes.
fn comparable(value: &Value, root: &str) -> Value {
    match value {
        Value::String(text) if text.parse::<jiff::Timestamp>().is_ok() => {
            let none = text.starts_with("1970-") || text.starts_with("0001-");
            assert_eq!(text.len(), "2026-11-28T21:44:17Z".len(), "whole seconds");
            if none { value.clone() } else { json!("a time") }
        }
        Value::String(text) => json!(text.replace(root, "https://git.example")),
        Value::Array(items) => items.iter().map(|item| comparable(item, root)).collect(),
        Value::Object(members) => {
            let differs = |key: &str| ["avatar_url", "head_sha", "size"].contains(&key);
            let members = members.iter().map(|(key, value)| {
                let value = if differs(key) { json!("differs") } else { comparable(value, root) };
                (key.clone(), value)
            });
            Value::Object(members.collect())
        }
        other => other.clone(),
    }
}

#[tokio::test]
async fn payloads_are_those_of_a_real_server() {
    let gitea = Gitea::start().await;
    let (url, mut from) = receiver(200).await;
    gitea.hook("orgs/acme", &url).await;
    let step = json!({"name": "Run echo begins; sleep 3; echo ends; exit 0", "run": "echo begins"});
    gitea.job_with(json!({"name": "j0", "labels": ["one"], "steps": [step]})).await;
    let program = gitea.register("one-1", &["one"]).await;
    let task = program.fetch().await.unwrap().expect("a task");
    program.finish(task, "SUCCESS").await.unwrap();
    for action in ["queued", "in_progress", "completed"] {
        let (_, payload) = next(&mut from).await;
        let (got, wanted) = (comparable(&payload, &gitea.root), comparable(&real(action), "https://git.example"));
        assert_eq!(got, wanted, "{action}");
    }
}

#[tokio::test]
async fn a_hook_at_each_level_gets_a_delivery_of_its_own() {
    let gitea = Gitea::start().await;
    let (url, mut from) = receiver(200).await;
    for scope in ["repos/acme/app", "orgs/acme", "system"] {
        gitea.hook(scope, &url).await;
    }
    let ids = gitea.job(&["mac"]).await;
    let mut uuids = Vec::new();
    for target in ["repository", "organization", "system"] {
        let (headers, payload) = next(&mut from).await;
        assert_eq!(payload["workflow_job"]["id"], ids.job);
        assert_eq!(header(&headers, "x-github-hook-installation-target-type"), target);
        assert_eq!(header(&headers, "x-gitea-hook-installation-target-type"), target);
        assert_eq!(header(&headers, "content-type"), "application/json");
        for family in ["x-github", "x-gitea", "x-gogs"] {
            assert_eq!(header(&headers, &format!("{family}-event")), "workflow_job");
            assert_eq!(header(&headers, &format!("{family}-event-type")), "workflow_job");
            assert_eq!(header(&headers, &format!("{family}-delivery")), header(&headers, "x-github-delivery"));
        }
        let bare = header(&headers, "x-hub-signature-256").strip_prefix("sha256=").unwrap();
        assert_eq!((header(&headers, "x-gitea-signature"), header(&headers, "x-gogs-signature")), (bare, bare));
        let sha1 = header(&headers, "x-hub-signature").strip_prefix("sha1=").unwrap();
        assert_eq!(sha1.len(), 40);
        uuids.push(header(&headers, "x-github-delivery").to_owned());
    }
    uuids.dedup();
    assert_eq!(uuids.len(), 3, "{uuids:?}");
}

#[tokio::test]
async fn a_hook_hears_of_its_own_repositories_alone() {
    let gitea = Gitea::start().await;
    gitea.tell("orgs", json!({"name": "other", "owners": ["someone"]})).await;
    gitea.tell("repos", json!({"full_name": "other/app"})).await;
    let (url, mut from) = receiver(200).await;
    gitea.hook("orgs/acme", &url).await;
    gitea.job_with(json!({"repository": "other/app", "labels": ["mac"]})).await;
    let ids = gitea.job(&["mac"]).await;
    let (_, payload) = next(&mut from).await;
    assert_eq!(payload["workflow_job"]["id"], ids.job, "the job of another organisation was sent");
}

#[tokio::test]
async fn a_delivery_is_made_once_whatever_is_answered() {
    let gitea = Gitea::start().await;
    let (url, mut from) = receiver(503).await;
    gitea.hook("system", &url).await;
    let first = gitea.job(&["mac"]).await;
    next(&mut from).await;
    gitea.advance(3600).await;
    let second = gitea.job(&["mac"]).await;
    let (_, payload) = next(&mut from).await;
    assert_eq!(payload["workflow_job"]["id"], second.job, "job {} was sent again", first.job);
    let deliveries = gitea.state().await["deliveries"].clone();
    assert_eq!((&deliveries[0]["attempts"], &deliveries[0]["status"]), (&json!(1), &json!(503)));
}

#[tokio::test]
async fn deliveries_are_lost_doubled_held_and_forged_when_a_test_wants_it() {
    let gitea = Gitea::start().await;
    let (url, mut from) = receiver(200).await;
    gitea.hook("system", &url).await;
    gitea.tell("hook", json!({"drop": 1})).await;
    gitea.job(&["lost"]).await;
    gitea.tell("hook", json!({"duplicate": 1})).await;
    let doubled = gitea.job(&["doubled"]).await.job;
    let (first, payload) = next(&mut from).await;
    assert_eq!(payload["workflow_job"]["id"], doubled);
    let (second, _) = next(&mut from).await;
    assert_eq!(header(&first, "x-github-delivery"), header(&second, "x-github-delivery"));

    gitea.tell("hook", json!({"hold": true})).await;
    let held = gitea.job(&["held"]).await.job;
    gitea.tell("hook", json!({"hold": false, "mute": ["completed"]})).await;
    assert_eq!(next(&mut from).await.1["workflow_job"]["id"], held);
    gitea.order("cancel", held).await;
    gitea.tell("hook", json!({"wrong_signature": 1, "mute": []})).await;
    gitea.job(&["forged"]).await;
    let (headers, body) = from.recv().await.unwrap();
    assert_ne!(header(&headers, "x-hub-signature-256"), signature(SECRET, &body));

    gitea.tell("hook", json!({"delay_seconds": 3600})).await;
    let late = gitea.job(&["late"]).await.job;
    gitea.advance(3600).await;
    assert_eq!(next(&mut from).await.1["workflow_job"]["id"], late);
}
