//! Sessions in guests: what is refused, and with which words. Whole sessions are tested with real guests.

use reqwest::Method;
use serde_json::json;

use super::{Api, Got, api, pointer};

async fn open(api: &Api, vm: &str, token: &str) -> Got {
    let request = api.request(Method::GET, &format!("/vms/{vm}/exec"), token);
    let request = request
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    Got::of(request.send().await.unwrap()).await
}

#[tokio::test]
async fn a_session_that_cannot_be_opened_is_refused_with_its_reason() {
    let api = api().await;
    let (queued, _) = api.vm("queued").await;
    let (running, vm_token) = api.running("running").await;
    let running_id = running.to_string();

    let unknown = open(&api, "01999999-9999-7999-8999-999999999999", &api.admin).await;
    unknown.problem(404, "vm.not_found");
    let waits = open(&api, &queued.to_string(), &api.admin).await.problem(409, "vm.not_ready");
    assert!(waits["detail"].as_str().unwrap().starts_with("queued is queued"), "{waits:#}");
    // The template has no login, and the answer says what it needs.
    let no_login = open(&api, &running_id, &api.admin).await.problem(422, "vm.access_unsupported");
    for word in ["micro", "`ssh_key`", "`ssh_password`"] {
        assert!(no_login["detail"].as_str().unwrap().contains(word), "{word}: {no_login:#}");
    }
    api.finish(running).await;
    let gone = open(&api, &running_id, &api.admin).await.problem(409, "vm.ended");
    assert!(gone["detail"].as_str().unwrap().contains("keep_on_failure"), "{gone:#}");

    // Who may: an admin, and the token with which the vm was created.
    open(&api, &running_id, &api.read).await.problem(403, "auth.scope_missing");
    open(&api, &running_id, &vm_token).await.problem(403, "auth.scope_missing");
    open(&api, &running_id, "").await.problem(401, "auth.required");
    open(&api, &running_id, &api.create).await.problem(409, "vm.ended");
    let body = json!({"name": "other", "scope": "create"});
    let other = api.post("/tokens", &api.admin, body).await.ok(201)["token"].as_str().unwrap().to_owned();
    open(&api, &running_id, &other).await.problem(403, "auth.vm_foreign");

    // What is no WebSocket is told so, and nothing is recorded of what was refused.
    let plain = api.get(&format!("/vms/{queued}/exec"), &api.admin).await.problem(400, "request.invalid");
    assert_eq!(pointer(&plain), "header:Upgrade");
    for id in [queued.to_string(), running_id] {
        let events = api.get(&format!("/vms/{id}/events"), &api.read).await;
        assert!(!events.text.contains("session_opened"), "{}", events.text);
    }
    // The guest API has no such path.
    let path = format!("/vms/{queued}/exec");
    api.guest(Method::GET, &path, &vm_token, None).await.problem(404, "request.not_found");
}
