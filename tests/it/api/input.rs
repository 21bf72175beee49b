use reqwest::Method;
use serde_json::json;

use super::{Got, api, pointer};

#[tokio::test]
async fn a_bad_body_is_refused_at_its_field() {
    let api = api().await;
    for (body, at) in [
        (r#"{"template":"micro","colour":"red"}"#, "/colour"),
        (r#"{"template":7}"#, "/template"),
        (r#"{}"#, "/template"),
        (r#"{"template":"micro","runner":{"kind":"magic"}}"#, "/runner/kind"),
        (r#"{"template":"micro","runner":{"kind":"command"}}"#, "/runner/command"),
        (r#"{"template":"micro","runner":{"kind":"command","command":""}}"#, "/runner/command"),
        (r#"{"template":"micro","budgets":{"boot_seconds":"long"}}"#, "/budgets/boot_seconds"),
        (r#"{"template":"micro","budgets":{"boot_seconds":0}}"#, "/budgets/boot_seconds"),
        (r#"{"template":"micro","budgets":{"nap_seconds":1}}"#, "/budgets/nap_seconds"),
        (r#"{"template":"micro","name":"-"}"#, "/name"),
        (r#"{"template":"micro","cpus":-1}"#, "/cpus"),
        (r#"{"template":"micro","labels":{"a/b":1}}"#, "/labels/a~1b"),
        (r#"{"template":"micro","template":"micro"}"#, "/template"),
        (r#"{"template":"micro""#, ""),
        (r#"{"template":"mi"#, "/template"),
        ("", ""),
        ("null", ""),
        ("[1,2", ""),
        ("{}{}", "/template"),
    ] {
        let problem = api.post_raw("/vms", "application/json", body).await.problem(400, "request.invalid");
        assert_eq!(pointer(&problem), at, "{body}: {problem:#}");
    }
    let deep = "[".repeat(100_000);
    api.post_raw("/vms", "application/json", deep).await.problem(400, "request.invalid");
    let bytes = b"{\"template\":\"\xff\xfe\"}".to_vec();
    api.post_raw("/vms", "application/json", bytes).await.problem(400, "request.invalid");
    let unknown = api.post_raw("/vms", "application/json", r#"{"template":"micro","runner":{"kind":"magic"}}"#).await;
    let detail = unknown.json()["errors"][0]["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("magic") && detail.contains("command"), "it says what there is: {detail}");
}

#[tokio::test]
async fn a_body_must_be_json_and_not_too_large() {
    let api = api().await;
    api.post_raw("/vms", "text/plain", "{}").await.problem(415, "request.media_type_unsupported");
    api.post_raw("/vms", "application/x-www-form-urlencoded", "a=b")
        .await
        .problem(415, "request.media_type_unsupported");
    let none = api.request(Method::POST, "/vms", &api.admin).send().await.unwrap();
    Got::of(none).await.problem(415, "request.media_type_unsupported");
    api.post_raw("/vms", "Application/JSON; charset=utf-8", r#"{"template":"micro"}"#).await.ok(201);

    let large = format!(r#"{{"template":"{}"}}"#, "x".repeat(1024 * 1024));
    api.post_raw("/vms", "application/json", large.clone()).await.problem(413, "request.too_large");
    // Without a length in its header: refused while it is read.
    let chunks = futures_util::stream::iter(
        large.into_bytes().chunks(8192).map(|c| Ok::<_, std::io::Error>(c.to_vec())).collect::<Vec<_>>(),
    );
    let body = reqwest::Body::wrap_stream(chunks);
    let request = api.request(Method::POST, "/vms", &api.admin).header("content-type", "application/json").body(body);
    // The service may close the connection while the client still sends: both are a refusal.
    if let Ok(response) = request.send().await {
        Got::of(response).await.problem(413, "request.too_large");
    }
}

#[tokio::test]
async fn a_token_is_required_and_its_scope_counts() {
    let api = api().await;
    for path in ["/vms", "/events", "/templates", "/host", "/reconcile", "/metrics", "/tokens"] {
        let got = api.get(path, "").await;
        got.problem(401, "auth.required");
        assert!(got.header("www-authenticate").starts_with("Bearer"));
        api.get(path, "mfa_wrong").await.problem(401, "auth.required");
        api.get(path, "mfv_0_wrong").await.problem(401, "auth.required");
    }
    for header in ["Basic YTpi", "Bearer", "Bearer ", &format!("bearer{}", api.admin)] {
        let request = api.request(Method::GET, "/vms", "").header("authorization", header);
        Got::of(request.send().await.unwrap()).await.problem(401, "auth.required");
    }
    let request = api.request(Method::GET, "/vms", "").header("authorization", format!("bEARER  {}", api.read));
    Got::of(request.send().await.unwrap()).await.ok(200);
    let twice = api.request(Method::GET, "/vms", &api.read).header("authorization", format!("Bearer {}", api.read));
    Got::of(twice.send().await.unwrap()).await.problem(401, "auth.required");

    let create = json!({"template": "micro"});
    api.post("/vms", &api.read, create.clone()).await.problem(403, "auth.scope_missing");
    // The token comes before the body: whoever may not call learns nothing of what the call takes.
    api.post("/vms", &api.read, json!({"x": 1})).await.problem(403, "auth.scope_missing");
    let (id, _) = api.vm("one").await;
    api.delete(&format!("/vms/{id}"), &api.read).await.problem(403, "auth.scope_missing");
    for token in [&api.read, &api.create] {
        api.get("/tokens", token).await.problem(403, "auth.scope_missing");
        api.post("/tokens", token, json!({"name": "n", "scope": "read"})).await.problem(403, "auth.scope_missing");
        api.post("/templates", token, json!({})).await.problem(403, "auth.scope_missing");
        api.delete("/templates/micro", token).await.problem(403, "auth.scope_missing");
    }
    let answer = api.get("/vms", "mfa_wrong-and-secret").await;
    assert!(!answer.text.contains("secret"));
}

#[tokio::test]
async fn unknown_paths_and_methods_are_problems_too() {
    let api = api().await;
    for path in ["/nope", "/vms/", "/vm", "/vms/x/y/z", "/docs/nope.js", "/problems/no.such"] {
        api.get(path, &api.admin).await.problem(404, "request.not_found");
    }
    api.get("/vms/not-an-id", &api.read).await.problem(404, "vm.not_found");
    api.delete("/vms/not-an-id", &api.admin).await.problem(404, "vm.not_found");
    for (method, path, allow) in [
        (Method::PUT, "/vms", ["GET", "POST"].as_slice()),
        (Method::POST, "/vms/0", ["GET", "DELETE"].as_slice()),
        (Method::PATCH, "/host", ["GET"].as_slice()),
        (Method::DELETE, "/healthz", ["GET"].as_slice()),
        (Method::POST, "/docs/", ["GET"].as_slice()),
    ] {
        let got = Got::of(api.request(method, path, &api.admin).send().await.unwrap()).await;
        got.problem(405, "request.method_not_allowed");
        for method in allow {
            assert!(got.header("allow").contains(method), "{path}: {}", got.header("allow"));
        }
    }
}

#[tokio::test]
async fn a_request_id_is_kept_when_sane() {
    let api = api().await;
    let send = async |id: &str| {
        Got::of(api.request(Method::GET, "/healthz", "").header("x-request-id", id).send().await.unwrap()).await
    };
    assert_eq!(send("job-4711:a/b").await.header("x-request-id"), "job-4711:a/b");
    for insane in ["a b", "<script>", &"x".repeat(129), "\"quoted\""] {
        let got = send(insane).await;
        assert_ne!(got.header("x-request-id"), insane);
        assert_eq!(got.header("x-request-id").len(), 36);
    }
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let api = api().await;
    for path in ["/healthz", "/vms", "/host", "/openapi.json", "/", "/problems"] {
        let got = Got::of(api.request(Method::HEAD, path, &api.read).send().await.unwrap()).await;
        assert_eq!((got.status.as_u16(), got.text.as_str()), (200, ""), "{path}");
    }
    let missing = Got::of(api.request(Method::HEAD, "/vms/x", &api.read).send().await.unwrap()).await;
    assert_eq!((missing.status.as_u16(), missing.text.as_str()), (404, ""));
}
