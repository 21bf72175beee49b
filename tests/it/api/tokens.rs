use serde_json::{Value, json};

use super::{api, pointer};

#[tokio::test]
async fn a_token_is_shown_once_works_and_is_revoked_for_good() {
    let api = api().await;
    let made = api.post("/tokens", &api.admin, json!({"name": "ci", "scope": "create"})).await.ok(201);
    let secret = made["token"].as_str().unwrap();
    let path = format!("/tokens/{}", made["id"].as_str().unwrap());
    api.get("/vms", secret).await.ok(200);
    let list = api.get("/tokens", &api.admin).await;
    assert!(!list.text.contains(secret));
    assert_eq!(list.ok(200)["items"].as_array().unwrap().len(), 4);
    let taken = api.post("/tokens", &api.admin, json!({"name": "ci", "scope": "read"})).await;
    assert_eq!(pointer(&taken.problem(409, "token.name_in_use")), "/name");

    let revoked = api.delete(&path, &api.admin).await.ok(200);
    assert!(revoked["revoked_at"].is_string());
    assert_eq!(api.delete(&path, &api.admin).await.ok(200), revoked, "asking again changes nothing");
    api.get("/vms", secret).await.problem(401, "auth.required");
    for unknown in ["/tokens/nope", "/tokens/00000000-0000-0000-0000-000000000000"] {
        api.delete(unknown, &api.admin).await.problem(404, "token.not_found");
    }
    for (body, at) in [
        (json!({"name": "", "scope": "read"}), "/name"),
        (json!({"name": "a b", "scope": "read"}), "/name"),
        (json!({"name": "x", "scope": "root"}), "/scope"),
        (json!({"name": "x"}), "/scope"),
    ] {
        let problem = api.post("/tokens", &api.admin, body).await.problem(400, "request.invalid");
        assert_eq!(pointer(&problem), at);
    }
}

#[tokio::test]
async fn the_host_is_shown() {
    let api = api().await;
    let (id, _) = api.running("one").await;
    let host = api.get("/host", &api.read).await.ok(200);
    assert_eq!(host["slots"]["linux"], json!({"total": 2, "ours": 1, "foreign": 0, "free": 1}));
    assert_eq!(host["leased"]["cpus"], 1);
    assert_eq!(host["queued"], 0);
    assert!(host["observed_at"].is_string() && host["observed_age_seconds"].as_u64().unwrap() < 10, "{host:#}");
    let difference = api.get("/reconcile", &api.read).await.ok(200);
    assert!(difference["observed_at"].as_str().unwrap() >= host["observed_at"].as_str().unwrap());
    let ready = api.get("/readyz", "").await.ok(200);
    assert_eq!(ready["host_observed_at"], difference["observed_at"]);
    assert_eq!(difference["missing"], json!([id.to_string()]));
    assert_eq!(difference["strays"], Value::Array(vec![]));
}
