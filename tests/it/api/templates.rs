use serde_json::json;

use super::{api, disk, pointer};

#[tokio::test]
async fn a_template_is_registered_shown_and_deleted() {
    let api = api().await;
    let disk = disk(&api.dir, "other.raw", 2);
    let key = api.dir.path().join("secret_key");
    let body = json!({"name": "other", "driver": "fake", "disk": disk, "cpus": 3, "budgets": {"boot_seconds": 7}});
    let got = api.post("/templates", &api.admin, body.clone()).await;
    let template = got.ok(201);
    assert_eq!(got.header("location"), "/templates/other");
    assert_eq!(template["budgets"]["boot_seconds"], 7);
    assert_eq!(
        (&template["os"], &template["user"], &template["handover"]),
        (&json!("linux"), &json!("runner"), &json!("seed"))
    );
    assert_eq!((&template["cpus"], &template["memory_mib"]), (&json!(3), &json!(2048)));
    assert!(!got.text.contains(api.dir.path().to_str().unwrap()), "no paths of the host: {}", got.text);
    assert!(!got.text.contains(key.to_str().unwrap()));
    assert_eq!(api.post("/templates", &api.admin, body).await.ok(200)["digest"], template["digest"]);

    assert_eq!(api.get("/templates/other", &api.read).await.ok(200), template);
    let digest = template["digest"].as_str().unwrap();
    assert_eq!(api.get(&format!("/templates/{digest}"), &api.read).await.ok(200)["digest"], template["digest"]);
    let all = api.get("/templates", &api.read).await.ok(200);
    assert_eq!(all["items"].as_array().unwrap().len(), 2);

    let another = json!({"name": "other", "driver": "fake", "disk": api.dir.path().join("disk.raw")});
    api.post("/templates", &api.admin, another).await.problem(409, "template.exists");
    assert_eq!(api.delete("/templates/other", &api.admin).await.status.as_u16(), 204);
    api.delete("/templates/other", &api.admin).await.problem(404, "template.not_found");
    api.get("/templates/other", &api.read).await.problem(404, "template.not_found");
    api.get("/templates/..%2F..%2Fetc", &api.read).await.problem(404, "template.not_found");
}

#[tokio::test]
async fn a_template_in_use_stays() {
    let api = api().await;
    let (id, _) = api.vm("one").await;
    let got = api.delete("/templates/micro", &api.admin).await;
    got.problem(409, "template.in_use");
    assert!(!got.header("retry-after").is_empty());
    api.finish(id).await;
    assert_eq!(api.delete("/templates/micro", &api.admin).await.status.as_u16(), 204);
}

#[tokio::test]
async fn a_template_that_cannot_be_is_refused_at_its_field() {
    let api = api().await;
    let disk = api.dir.path().join("disk.raw");
    for (body, status, code, at) in [
        (json!({"name": "x", "driver": "fake", "disk": "relative.raw"}), 400, "request.invalid", "/disk"),
        (json!({"name": "x", "driver": "fake"}), 400, "request.invalid", "/disk"),
        (json!({"name": "x", "driver": "fake", "disk": disk, "os": "beos"}), 400, "request.invalid", "/os"),
        (json!({"name": "x", "driver": "none", "disk": disk}), 422, "driver.unsupported", "/driver"),
        (
            json!({"name": "x", "driver": "fake", "disk": disk, "budgets": {"max_attempts": 0}}),
            400,
            "request.invalid",
            "/budgets/max_attempts",
        ),
    ] {
        let problem = api.post("/templates", &api.admin, body).await.problem(status, code);
        assert_eq!(pointer(&problem), at, "{problem:#}");
    }
    let absent = json!({"name": "x", "driver": "fake", "disk": "/nowhere/at/all"});
    api.post("/templates", &api.admin, absent).await.problem(422, "template.invalid");
}
