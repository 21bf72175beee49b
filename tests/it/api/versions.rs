//! Names with a history, pins, pruning, verifying.

use serde_json::{Value, json};

use super::{Api, api, disk, pointer};

/// Another version, under a name of its own; its digest.
async fn version(api: &Api, fill: u8) -> String {
    let name = format!("v{fill}");
    let disk = disk(&api.dir, &format!("{name}.raw"), fill);
    let body = json!({"name": name, "driver": "fake", "disk": disk});
    api.post("/templates", &api.admin, body).await.ok(201)["digest"].as_str().unwrap().to_owned()
}

fn previous(template: &Value) -> Vec<&str> {
    template["previous"].as_array().unwrap().iter().map(|v| v["digest"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_name_moves_and_goes_back_and_running_vms_keep_theirs() {
    let api = api().await;
    let (one, two, three) = (version(&api, 11).await, version(&api, 12).await, version(&api, 13).await);
    let put = async |digest: &str, why: Value| {
        api.put("/templates/latest", &api.admin, json!({"digest": digest, "why": why})).await
    };
    let made = put(&one, json!("first")).await.ok(201);
    assert_eq!((&made["name"], &made["digest"], &made["why"]), (&json!("latest"), &json!(one), &json!("first")));
    assert_eq!((&made["names"], &made["previous"]), (&json!(["latest", "v11"]), &json!([])));
    assert!(made["since"].is_string());

    let body = json!({"template": "latest", "name": "old"});
    let vm = api.post("/vms", &api.create, body.clone()).await.ok(201);
    assert_eq!(vm["template_digest"], one);
    put(&two, Value::Null).await.ok(200);
    let now = put(&three, json!("newest")).await.ok(200);
    assert_eq!(previous(&now), [&two, &one]);
    assert_eq!(now["previous"][1]["why"], "first");
    let got = api.get(&format!("/vms/{}", vm["id"].as_str().unwrap()), &api.read).await.ok(200);
    assert_eq!((&got["template"], &got["template_digest"]), (&json!("latest"), &json!(one)));
    let next = api.post("/vms", &api.create, json!({"template": "latest"})).await.ok(201);
    assert_eq!(next["template_digest"], three);

    // Back, and back again: where it began. Pointing there again changes nothing.
    let back = async |body| api.post("/templates/latest/rollback", &api.admin, body).await;
    let after = back(json!({})).await.ok(200);
    assert_eq!((&after["digest"], previous(&after)), (&json!(two), vec![three.as_str(), one.as_str()]));
    assert!(after["why"].as_str().unwrap().contains(&three), "{after:#}");
    assert_eq!(back(json!({})).await.ok(200)["digest"], three);
    assert_eq!(previous(&put(&three, Value::Null).await.ok(200)), [&two, &one]);
    let after = back(json!({"to": one})).await.ok(200);
    assert_eq!((&after["digest"], previous(&after)), (&json!(one), vec![three.as_str(), two.as_str()]));

    // A version that has gone is skipped, and cannot be asked for.
    api.delete("/templates/v13", &api.admin).await.problem(409, "template.in_use");
    let gone = api.dir.path().join("templates").join(three.replace(':', "-"));
    std::fs::remove_dir_all(gone).unwrap();
    assert_eq!(previous(&api.get("/templates/latest", &api.read).await.ok(200)), [&two]);
    back(json!({"to": three})).await.problem(409, "template.no_previous");
    assert_eq!(back(json!({})).await.ok(200)["digest"], two);
}

#[tokio::test]
async fn names_and_pins_that_cannot_be_are_refused() {
    let api = api().await;
    let one = version(&api, 21).await;
    let unknown = format!("sha256:{}", "0".repeat(64));
    for (name, digest, status, code, at) in [
        ("x", unknown.as_str(), 422, "template.unknown", "/digest"),
        ("x", "sha256:12", 422, "template.unknown", "/digest"),
        ("x", "../..", 422, "template.unknown", "/digest"),
        ("-x", one.as_str(), 422, "template.invalid", "/name"),
    ] {
        let got = api.put(&format!("/templates/{name}"), &api.admin, json!({"digest": digest})).await;
        assert_eq!(pointer(&got.problem(status, code)), at, "{name} {digest}");
    }
    // It is a verb.
    api.put("/templates/prune", &api.admin, json!({"digest": one})).await.problem(405, "request.method_not_allowed");
    let disk = api.dir.path().join("disk.raw");
    let got = api.post("/templates", &api.admin, json!({"name": "prune", "driver": "fake", "disk": disk})).await;
    assert_eq!(pointer(&got.problem(422, "template.invalid")), "/name");
    api.put("/templates/x", &api.create, json!({"digest": one})).await.problem(403, "auth.scope_missing");
    api.post("/templates/v21/rollback", &api.admin, json!({})).await.problem(409, "template.no_previous");
    let got = api.post("/templates/v21/rollback", &api.admin, json!({"to": unknown})).await;
    assert_eq!(pointer(&got.problem(409, "template.no_previous")), "/to");
    api.post("/templates/none/rollback", &api.admin, json!({})).await.problem(404, "template.not_found");
    api.put("/templates/none/pin", &api.admin, json!({"why": "x"})).await.problem(404, "template.not_found");
    let got = api.put("/templates/v21/pin", &api.admin, json!({"why": " "})).await;
    assert_eq!(pointer(&got.problem(400, "request.invalid")), "/why");
    for why in ["a\nreason".to_owned(), "x".repeat(201)] {
        let got = api.put("/templates/v21", &api.admin, json!({"digest": one, "why": why})).await;
        assert_eq!(pointer(&got.problem(400, "request.invalid")), "/why");
        let got = api.put("/templates/v21/pin", &api.admin, json!({"why": why})).await;
        assert_eq!(pointer(&got.problem(400, "request.invalid")), "/why");
    }
    let got = api.put("/templates/v21/pin", &api.admin, json!({})).await;
    assert_eq!(pointer(&got.problem(400, "request.invalid")), "/why");
}

#[tokio::test]
async fn a_pin_stays_with_its_version() {
    let api = api().await;
    let one = version(&api, 31).await;
    let pinned = api.put("/templates/v31/pin", &api.admin, json!({"why": "a reason"})).await.ok(200);
    assert_eq!(pinned["pin"]["why"], "a reason");
    let two = version(&api, 32).await;
    api.put("/templates/v31", &api.admin, json!({"digest": two})).await.ok(200);
    assert!(api.get("/templates/v31", &api.read).await.ok(200)["pin"].is_null());
    assert_eq!(api.get(&format!("/templates/{one}"), &api.read).await.ok(200)["pin"]["why"], "a reason");

    // Its name goes, it stays; without the pin it can be deleted.
    api.delete("/templates/v31", &api.admin).await.ok(204);
    let path = format!("/templates/{one}");
    api.delete(&path, &api.admin).await.problem(409, "template.in_use");
    api.delete(&format!("{path}/pin"), &api.admin).await.ok(204);
    api.delete(&path, &api.admin).await.ok(204);
    api.get(&path, &api.read).await.problem(404, "template.not_found");
    let named = format!("/templates/{two}");
    api.delete(&named, &api.admin).await.problem(409, "template.in_use");
}

#[tokio::test]
async fn use_is_noted_and_a_version_with_a_history_survives_its_last_name() {
    let api = api().await;
    let before = api.get("/templates/micro", &api.read).await.ok(200);
    api.vm("one").await;
    let after = api.get("/templates/micro", &api.read).await.ok(200);
    assert!(after["last_used_at"].as_str() > before["last_used_at"].as_str(), "{after:#}");

    let (one, two) = (version(&api, 41).await, version(&api, 42).await);
    api.put("/templates/latest", &api.admin, json!({"digest": one})).await.ok(201);
    api.put("/templates/latest", &api.admin, json!({"digest": two})).await.ok(200);
    api.delete("/templates/v41", &api.admin).await.ok(204);
    assert_eq!(api.post("/templates/latest/rollback", &api.admin, json!({})).await.ok(200)["digest"], one);
}

#[tokio::test]
async fn unneeded_versions_are_pruned_on_request() {
    let api = api().await;
    let (one, two) = (version(&api, 51).await, version(&api, 52).await);
    api.put("/templates/v51", &api.admin, json!({"digest": two})).await.ok(200);
    let prune = async |body: Value| api.post("/templates/prune", &api.admin, body).await;
    let all = json!({"keep_previous": 0, "dry_run": true});
    assert_eq!(prune(json!({})).await.ok(200)["removed"], json!([]), "a rollback would need it");
    let outlook = prune(all).await.ok(200);
    let gone = &outlook["removed"][0];
    assert_eq!((&gone["digest"], &gone["names"], &gone["kind"]), (&json!(one), &json!(["v51"]), &json!("template")));
    assert!(gone["bytes"].as_u64().unwrap() >= 64 * 1024 && gone["why"].as_str().unwrap().contains("moved on"));
    assert_eq!((&outlook["dry_run"], &outlook["freed_bytes"]), (&json!(true), &gone["bytes"]));
    assert_eq!(outlook["kept"].as_array().unwrap().len(), 2);
    let kept = json!({"keep_previous": 0, "older_than_seconds": 3600});
    assert_eq!(prune(kept).await.ok(200)["removed"], json!([]));

    // A vm of it keeps it; when that has gone, nothing does.
    let vm = api.post("/vms", &api.create, json!({"template": one})).await.ok(201);
    assert_eq!(prune(json!({"keep_previous": 0})).await.ok(200)["removed"], json!([]));
    api.finish(vm["id"].as_str().unwrap().parse().unwrap()).await;
    assert_eq!(prune(json!({"keep_previous": 0, "partial": true})).await.ok(200)["removed"][0]["digest"], one);
    api.get(&format!("/templates/{one}"), &api.read).await.problem(404, "template.not_found");
    let events = api.get(&format!("/templates/{one}/events"), &api.read).await.ok(200);
    let pruned = events["items"].as_array().unwrap().iter().find(|e| e["type"] == "pruned").unwrap();
    assert_eq!((&pruned["bytes"], &pruned["digest"]), (&gone["bytes"], &json!(one)));
    let events = api.get("/templates/v51/events", &api.read).await.ok(200);
    assert!(events["items"].as_array().unwrap().iter().any(|e| e["type"] == "name_moved" && e["from"] == one));

    for (body, at) in [
        (json!({"keep_previous": 11}), "/keep_previous"),
        (json!({"max_bytes": -1}), "/max_bytes"),
        (json!({"max_bytes": u64::MAX}), "/max_bytes"),
        (json!({"older_than_seconds": 1_u64 << 63}), "/older_than_seconds"),
        (json!({"olderthan": 1}), "/olderthan"),
    ] {
        assert_eq!(pointer(&prune(body).await.problem(400, "request.invalid")), at);
    }
    api.post("/templates/prune", &api.create, json!({})).await.problem(403, "auth.scope_missing");
}

#[tokio::test]
async fn a_damaged_template_is_found_refused_and_replaced() {
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
    let api = api().await;
    let verify = async || api.post("/templates/micro/verify", &api.admin, json!({})).await.ok(200);
    let sound = verify().await;
    assert_eq!((&sound["sound"], &sound["faults"], &sound["next"]), (&json!(true), &json!([]), &Value::Null));
    assert_eq!(sound["bytes"], 65_536);
    let before = api.get("/templates/micro", &api.read).await.ok(200);
    assert!(before["verified_at"].is_string());

    let digest = before["digest"].as_str().unwrap();
    let path = api.dir.path().join("templates").join(digest.replace(':', "-")).join("disk");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&[77], 40_000).unwrap();
    let found = verify().await;
    let fault = json!({"file": "disk", "offset": 0, "bytes": 65_536, "what": "its bytes are not those of its digest"});
    assert_eq!((&found["sound"], &found["faults"]), (&json!(false), &json!([fault])));
    assert!(found["next"].as_str().unwrap().contains("register"), "{found:#}");
    let damaged = api.get("/templates/micro", &api.read).await.ok(200);
    assert_eq!((&damaged["damage"]["faults"], &damaged["verified_at"]), (&json!([fault]), &Value::Null));
    assert_eq!(api.get("/templates", &api.read).await.ok(200)["items"][0]["damage"]["faults"], json!([fault]));
    let refused = api.post("/vms", &api.create, json!({"template": "micro"})).await.problem(409, "template.damaged");
    assert!(refused["detail"].as_str().unwrap().contains("register it again"), "{refused:#}");

    let again = json!({"name": "micro", "driver": "fake", "cpus": 1, "memory_mib": 128, "disk": api.dir.path().join("disk.raw")});
    assert_eq!(api.post("/templates", &api.admin, again).await.ok(200)["digest"], digest);
    assert_eq!(verify().await["sound"], true);
    api.vm("works").await;
    let events = api.get("/templates/micro/events", &api.read).await.ok(200);
    let faults: Vec<_> = events["items"].as_array().unwrap().iter().filter(|e| e["type"] == "verified").collect();
    assert_eq!(faults.iter().map(|e| e["faults"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 0]);
    api.post("/templates/none/verify", &api.admin, json!({})).await.problem(404, "template.not_found");
}
