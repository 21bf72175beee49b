use serde_json::{Value, json};

use super::{api, disk, pointer};
use crate::support::Serve;

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

/// Budgets that a template does not set are those of the configuration at the time when a vm is created.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_sets_only_what_it_was_told_and_that_can_be_changed() {
    let settings = [
        ("MAYFLY_DRIVERS__QEMU__ENABLED", "false"),
        ("MAYFLY_DRIVERS__FAKE__ENABLED", "true"),
        ("MAYFLY_BUDGETS__LIFETIME_SECONDS", "70"),
    ];
    let mut serve = Serve::start(&settings).await;
    let disk = serve.dir.join("own.img");
    std::fs::write(&disk, vec![7; 4096]).unwrap();
    let body = json!({"name": "own", "driver": "fake", "disk": disk, "cpus": 1, "memory_mib": 64, "budgets": {"boot_seconds": 7}});
    let (status, template) = serve.post("/templates", body.clone()).await;
    assert_eq!(status, 201, "{template}");
    let budgets =
        |of: &Value| ["lifetime_seconds", "boot_seconds", "idle_seconds"].map(|name| of["budgets"][name].clone());
    assert_eq!(budgets(&template), [json!(70), json!(7), json!(3600)]);
    assert_eq!(
        (&template["own_budgets"]["lifetime_seconds"], &template["own_budgets"]["boot_seconds"]),
        (&json!(null), &json!(7))
    );

    assert_eq!(serve.stop(), Some(0));
    serve.set("MAYFLY_BUDGETS__LIFETIME_SECONDS", "90");
    serve.set("MAYFLY_BUDGETS__BOOT_SECONDS", "600");
    serve.spawn().await;
    assert_eq!(budgets(&serve.get("/templates/own").await), [json!(90), json!(7), json!(3600)]);
    let vm = serve.create(json!({"template": "own", "runner": {"kind": "none"}})).await;
    assert_eq!(budgets(&vm), [json!(90), json!(7), json!(3600)]);

    let patch = async |serve: &Serve, name: &str, body: Value| {
        serve.send(reqwest::Method::PATCH, &format!("/templates/{name}"), Some(body)).await
    };
    let change = json!({"cpus": 2, "network": "isolated", "budgets": {"boot_seconds": null, "idle_seconds": 5}});
    let (status, changed) = patch(&serve, "own", change).await;
    assert_eq!(status, 200, "{changed}");
    assert_eq!(budgets(&changed), [json!(90), json!(600), json!(5)]);
    assert_eq!(
        (&changed["cpus"], &changed["memory_mib"], &changed["network"]),
        (&json!(2), &json!(64), &json!("isolated"))
    );
    assert_eq!(changed["digest"], template["digest"]);
    let later = serve.create(json!({"template": "own", "runner": {"kind": "none"}})).await;
    assert_eq!((budgets(&later), &later["cpus"]), ([json!(90), json!(600), json!(5)], &json!(2)));
    let before = serve.get(&format!("/vms/{}", vm["id"].as_str().unwrap())).await;
    assert_eq!((budgets(&before), &before["cpus"]), (budgets(&vm), &json!(1)), "a vm keeps what it was created with");

    let ready = json!({"http": {"port": 8080, "path": "/health", "expect": "ok"}, "budget_seconds": 200});
    let refused = patch(&serve, "own", json!({"ready": ready})).await;
    assert_eq!(
        (refused.0, &refused.1["errors"][0]["pointer"]),
        (400, &json!("/ready/budget_seconds")),
        "{:#}",
        refused.1
    );
    let change = json!({"ready": ready, "budgets": {"configure_seconds": 300}});
    let (status, changed) = patch(&serve, "own", change).await;
    assert_eq!((status, &changed["ready"]), (200, &ready), "{changed:#}");

    for (name, body, status, field) in [
        ("own", json!({"budgets": {"configure_seconds": null}}), 400, "/ready/budget_seconds"),
        ("own", json!({"ready": {"agent": true}}), 400, "/ready/agent"),
        ("own", json!({"ready": {"tcp": {"port": 0}}}), 400, "/ready/tcp/port"),
        ("own", json!({"ready": {"udp": {"port": 1}}}), 400, ""),
        ("own", json!({"budgets": {"nap_seconds": 1}}), 400, "/budgets/nap_seconds"),
        ("own", json!({"budgets": {"max_attempts": 0}}), 400, "/budgets/max_attempts"),
        ("own", json!({"cpus": 0}), 400, "/cpus"),
        ("own", json!({"memory_mib": 1}), 400, "/memory_mib"),
        ("own", json!({"user": "root"}), 400, "/user"),
        ("other", json!({}), 404, ""),
    ] {
        let (seen, problem) = patch(&serve, name, body.clone()).await;
        assert_eq!(seen, status, "{body}: {problem:#}");
        assert!(field.is_empty() || problem["errors"][0]["pointer"] == field, "{body}: {problem:#}");
    }

    // The same on the command line; and it outlives the service.
    let set = |serve: &Serve, args: &[&str]| {
        let mut mayfly = std::process::Command::new(env!("CARGO_BIN_EXE_mayfly"));
        mayfly
            .env_clear()
            .arg("--data-dir")
            .arg(&serve.dir)
            .args(["template", "set", "own"])
            .args(args)
            .output()
            .unwrap()
    };
    let done = set(
        &serve,
        &[
            "--unset",
            "idle_seconds",
            "--unset",
            "cpus",
            "--budget",
            "lifetime_seconds=1h",
            "--ready-http",
            "8080/up",
            "--ready-budget",
            "1m",
        ],
    );
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    for wrong in
        [&[][..], &["--unset", "nap"], &["--cpus", "2", "--unset", "cpus"], &["--ready-tcp", "22", "--unset", "ready"]]
    {
        assert_eq!(set(&serve, wrong).status.code(), Some(2), "{wrong:?}");
    }
    assert_eq!(serve.stop(), Some(0));
    serve.spawn().await;
    let shown = serve.get("/templates/own").await;
    assert_eq!((budgets(&shown), &shown["cpus"]), ([json!(3600), json!(600), json!(3600)], &json!(1)));
    assert_eq!(shown["ready"], json!({"http": {"port": 8080, "path": "/up"}, "budget_seconds": 60}));
    assert!(set(&serve, &["--unset", "ready"]).status.success());
    assert_eq!(serve.get("/templates/own").await["ready"], json!(null));
    let events = serve.get("/templates/own/events").await;
    let changes = events["items"].as_array().unwrap().iter().filter(|event| event["type"] == "settings_changed");
    assert_eq!(changes.count(), 4, "{events:#}");
}
