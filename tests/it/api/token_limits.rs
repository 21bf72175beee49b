//! What a token with limits may ask for, and what it is given of others.

use std::time::Duration;

use mayfly::{http, platform::Clock};
use reqwest::{Method, header};
use serde_json::{Value, json};

use super::{Api, Got, api, api_of, disk, new_template, pointer};

/// The id and the secret of a new token with the scope `create`.
async fn limited(api: &Api, name: &str, limits: Value) -> (String, String) {
    let body = json!({"name": name, "scope": "create", "limits": limits});
    let made = api.post("/tokens", &api.admin, body).await.ok(201);
    (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned())
}

async fn create(api: &Api, token: &str, body: Value) -> Got {
    api.post("/vms", token, body).await
}

async fn keyed(api: &Api, token: &str, key: &str, body: Value) -> Got {
    let request = api.request(Method::POST, "/vms", token).header("idempotency-key", key).json(&body);
    Got::of(request.send().await.unwrap()).await
}

/// Refused, with the limit, what was asked for and what is allowed.
#[track_caller]
fn refused(got: &Got, at: &str, words: &[&str]) {
    let problem = got.problem(403, "auth.limit_exceeded");
    assert_eq!(pointer(&problem), at, "{problem:#}");
    for word in words {
        assert!(problem["detail"].as_str().unwrap().contains(word), "{word} is missing: {problem:#}");
    }
}

async fn vms(api: &Api) -> usize {
    api.get("/vms?limit=200", &api.read).await.ok(200)["items"].as_array().unwrap().len()
}

fn runner(scope: &str, labels: &[&str]) -> Value {
    json!({
        "template": "micro",
        "runner": {"kind": "github", "scope": scope, "labels": labels, "registration_token": "AAAA"},
    })
}

#[tokio::test]
async fn each_limit_is_shown_and_holds() {
    let api = api().await;
    let big = disk(&api.dir, "big.raw", 2);
    std::fs::File::options().write(true).open(&big).unwrap().set_len(1 << 20).unwrap();
    let mut template = new_template("big", big);
    (template.cpus, template.memory_mib) = (Some(4), Some(1024));
    api.parts.catalog.register(template).await.unwrap();

    let limits = json!({"github_scopes": ["acme/*", "enterprises/acme"], "github_labels": ["linux", "team-a-*"]});
    let (id, token) = limited(&api, "github", limits).await;
    let shown = api.get(&format!("/tokens/{id}"), &api.admin).await.ok(200);
    assert_eq!(shown["limits"]["github_scopes"], json!(["acme/*", "enterprises/acme"]));
    assert_eq!((&shown["limits"]["max_cpus"], &shown["expires_at"]), (&Value::Null, &Value::Null));
    let listed = api.get("/tokens", &api.admin).await.ok(200);
    assert!(listed["items"].as_array().unwrap().contains(&shown), "{listed:#}");
    for scope in ["evil/app", "acme", "enterprises/evil"] {
        let got = create(&api, &token, runner(scope, &["linux"])).await;
        refused(&got, "/runner/scope", &["`github_scopes`", "acme/*", scope]);
    }
    let got = create(&api, &token, runner("acme/app", &["linux", "deploy"])).await;
    refused(&got, "/runner/labels", &["`github_labels`", "team-a-*", "deploy"]);
    assert_eq!(vms(&api).await, 0, "a refused request left something");
    let vm = create(&api, &token, runner("Acme/app", &["Linux", "team-a-gpu"])).await.ok(201);
    assert_eq!(vm["created_by"], json!(id));
    // What registers no runner is not limited by where runners are registered.
    create(&api, &token, json!({"template": "micro"})).await.ok(201);

    let (_, token) = limited(&api, "templates", json!({"templates": ["mic*"]})).await;
    create(&api, &token, json!({"template": "micro"})).await.ok(201);
    refused(&create(&api, &token, json!({"template": "big"})).await, "/template", &["`templates`", "mic*", "big"]);
    let digest = api.get("/templates/micro", &api.read).await.ok(200)["digest"].as_str().unwrap().to_owned();
    refused(&create(&api, &token, json!({"template": digest})).await, "/template", &["`templates`"]);
    // A template that is not here gets the same answer: its holder learns nothing.
    refused(&create(&api, &token, json!({"template": "nothing"})).await, "/template", &["`templates`"]);
    // A list of templates alone allows no images.
    refused(&create(&api, &token, json!({"template": "127.0.0.1:9/a:1"})).await, "/template", &["`images`", "nothing"]);

    // Whatever the request leaves to the template counts.
    let (_, token) = limited(&api, "cpus", json!({"max_cpus": 2})).await;
    refused(&create(&api, &token, json!({"template": "big"})).await, "/cpus", &["`max_cpus`", "2", "4"]);
    create(&api, &token, json!({"template": "big", "cpus": 2})).await.ok(201);
    refused(&create(&api, &token, json!({"template": "micro", "cpus": 3})).await, "/cpus", &["`max_cpus`"]);
    let (_, token) = limited(&api, "memory", json!({"max_memory_mib": 512})).await;
    let got = create(&api, &token, json!({"template": "big"})).await;
    refused(&got, "/memory_mib", &["`max_memory_mib`", "512", "1024"]);
    create(&api, &token, json!({"template": "big", "memory_mib": 512})).await.ok(201);
    let (_, token) = limited(&api, "disk", json!({"max_disk_bytes": 65536})).await;
    refused(&create(&api, &token, json!({"template": "big"})).await, "/template", &["`max_disk_bytes`", "1048576"]);
    create(&api, &token, json!({"template": "micro"})).await.ok(201);
}

#[tokio::test]
async fn of_an_image_that_is_not_allowed_nothing_is_fetched() {
    let api = api().await;
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = registry.local_addr().unwrap();
    let (_, token) = limited(&api, "images", json!({"images": [format!("{at}/acme/*")]})).await;
    let got = create(&api, &token, json!({"template": format!("{at}/evil/base:1")})).await;
    refused(&got, "/template", &["`images`", "/acme/*", "/evil/base:1"]);
    refused(&create(&api, &token, json!({"template": "micro"})).await, "/template", &["`templates`", "nothing"]);
    assert_eq!(vms(&api).await, 0);
    // The allowed one waits for its image, and so does a size of it that the request names.
    create(&api, &token, json!({"template": format!("{at}/acme/base:1")})).await.ok(201);
    let (_, token) = limited(&api, "size", json!({"max_cpus": 1})).await;
    let got = create(&api, &token, json!({"template": format!("{at}/acme/base:1"), "cpus": 2})).await;
    refused(&got, "/cpus", &["`max_cpus`"]);
    let asked = tokio::time::timeout(Duration::from_millis(1), registry.accept()).await;
    assert!(asked.is_err(), "the registry was asked");
}

#[tokio::test]
async fn live_vms_are_counted_where_the_next_one_is_stored() {
    let api = api().await;
    let (_, token) = limited(&api, "three", json!({"max_live_vms": 3})).await;
    let (_, other) = limited(&api, "another", json!({"max_live_vms": 1})).await;
    create(&api, &other, json!({"template": "micro"})).await.ok(201);
    let one = async |n: u32| keyed(&api, &token, &format!("k{n}"), json!({"template": "micro"})).await;
    let all = futures_util::future::join_all((0..12).map(one)).await;
    let (made, refused): (Vec<_>, Vec<_>) = all.iter().partition(|got| got.status == 201);
    assert_eq!((made.len(), refused.len()), (3, 9));
    for got in refused {
        let problem = got.problem(403, "auth.live_vms_exceeded");
        assert_eq!(problem["retryable"], true);
        assert!(problem["detail"].as_str().unwrap().contains("`max_live_vms`"), "{problem:#}");
        assert!(!got.header("retry-after").is_empty());
    }
    // A repetition is no further vm, and a deleted one makes room.
    let first = made[0].json();
    let key = all.iter().position(|got| got.status == 201).unwrap();
    let again = keyed(&api, &token, &format!("k{key}"), json!({"template": "micro"})).await.ok(200);
    assert_eq!(again["id"], first["id"]);
    let path = format!("/vms/{}", first["id"].as_str().unwrap());
    api.delete(&path, &token).await.ok(202);
    api.finish(first["id"].as_str().unwrap().parse().unwrap()).await;
    create(&api, &token, json!({"template": "micro"})).await.ok(201);
    create(&api, &token, json!({"template": "micro"})).await.problem(403, "auth.live_vms_exceeded");
}

#[tokio::test]
async fn a_token_with_limits_ends_and_reads_only_what_it_made() {
    let api = api().await;
    let (id, token) = limited(&api, "mine", json!({"max_cpus": 8})).await;
    let (others, _) = api.vm("others").await;
    let vm = create(&api, &token, json!({"template": "micro", "name": "own"})).await.ok(201);
    let own = format!("/vms/{}", vm["id"].as_str().unwrap());
    let others = format!("/vms/{others}");
    for path in [others.clone(), format!("{others}?force=true")] {
        let problem = api.delete(&path, &token).await.problem(403, "auth.vm_foreign");
        assert!(problem["detail"].as_str().unwrap().contains("others"), "{problem:#}");
    }
    api.get(&format!("{others}/logs"), &token).await.problem(403, "auth.vm_foreign");
    let shown = api.get(&others, &token).await.ok(200);
    assert_eq!(shown["state"], "queued");
    assert!(shown["created_by"].is_string() && shown["created_by"] != json!(id));

    assert_eq!(api.get(&format!("{own}/logs"), &token).await.status, 200);
    api.delete(&own, &token).await.ok(202);
    // A token without limits ends any.
    api.delete(&others, &api.create).await.ok(202);
    let nothing = "/vms/00000000-0000-0000-0000-000000000000";
    api.delete(nothing, &token).await.problem(404, "vm.not_found");
    api.get(&format!("{nothing}/logs"), &token).await.problem(404, "vm.not_found");
}

#[tokio::test]
async fn nobody_is_given_the_vm_of_another_by_repeating_its_request() {
    let api = api().await;
    let (_, token) = limited(&api, "first", json!({"max_cpus": 8})).await;
    let (_, second) = limited(&api, "second", json!({"max_cpus": 8})).await;
    let body = json!({"template": "micro"});
    let theirs = keyed(&api, &api.create, "k", body.clone()).await.ok(201);
    let mine = keyed(&api, &token, "k", body.clone()).await.ok(201);
    let third = keyed(&api, &second, "k", body.clone()).await.ok(201);
    for (one, other) in [(&theirs, &mine), (&theirs, &third), (&mine, &third)] {
        assert_ne!((&one["id"], &one["callback_token"]), (&other["id"], &other["callback_token"]));
    }
    assert_eq!(keyed(&api, &token, "k", body.clone()).await.ok(200)["id"], mine["id"]);
    // Callers without limits may change their token between two tries.
    assert_eq!(keyed(&api, &api.admin, "k", body).await.ok(200)["id"], theirs["id"]);

    // A name works like a key.
    let named = json!({"template": "micro", "name": "n"});
    create(&api, &api.create, named.clone()).await.ok(201);
    let got = create(&api, &token, named).await;
    assert!(!got.text.contains("callback_token"), "{}", got.text);
    assert_eq!(pointer(&got.problem(422, "vm.name_in_use")), "/name");
}

#[tokio::test]
async fn the_keys_of_callers_and_those_of_pools_are_different_keys() {
    let api = super::api_with_github(Default::default(), super::pools::nowhere()).await;
    let pool = super::pools::linux_pool("acme/app");
    // The very request that the pool makes for this job.
    let key = "github-job-7-1";
    let body = json!({"template": "micro", "runner": {"kind": "github", "scope": "acme/app", "labels": ["linux"]}});
    let before = keyed(&api, &api.create, key, body.clone()).await.ok(201);
    let made = api.services.admission.create_for_pool(&pool, &7.into(), key.to_owned()).await.unwrap();
    assert!(made.new, "the pool adopted a caller's vm");
    let after = keyed(&api, &api.create, key, body).await.ok(200);
    assert_eq!(after["id"], before["id"]);
    assert_ne!(after["id"], json!(made.vm.id()));
    let again = api.services.admission.create_for_pool(&pool, &7.into(), key.to_owned()).await.unwrap();
    assert_eq!((again.vm.id(), again.new), (made.vm.id(), false));
    let shown = api.get(&format!("/vms/{}", made.vm.id()), &api.read).await.ok(200);
    assert_eq!((&shown["pool"], &shown["created_by"]), (&json!("linux"), &Value::Null));
}

#[tokio::test]
async fn a_token_expires_and_leaves_its_name() {
    let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let of = clock.clone();
    let api = api_of(http::Settings::default(), move |setup| setup.clock = of).await;
    let body = json!({"name": "short", "scope": "admin", "expires_at": "2026-01-01T01:00:00Z"});
    let made = api.post("/tokens", &api.admin, body.clone()).await.ok(201);
    assert_eq!(made["expires_at"], "2026-01-01T01:00:00.000Z");
    let secret = made["token"].as_str().unwrap();
    clock.advance(Duration::from_millis(3_599_999));
    api.get("/vms", secret).await.ok(200);
    api.post("/tokens", &api.admin, body.clone()).await.problem(409, "token.name_in_use");
    clock.advance(Duration::from_millis(1));
    let got = api.get("/vms", secret).await;
    assert!(got.problem(401, "auth.required")["detail"].as_str().unwrap().contains("expired"), "{}", got.text);
    assert!(got.header("www-authenticate").starts_with("Bearer"));
    let problem = api.post("/tokens", &api.admin, body).await.problem(400, "request.invalid");
    assert_eq!(pointer(&problem), "/expires_at");
    let body = json!({"name": "short", "scope": "read", "expires_at": "2026-02-01T00:00:00Z"});
    let second = api.post("/tokens", &api.admin, body).await.ok(201);
    api.get("/vms", second["token"].as_str().unwrap()).await.ok(200);
    let first = api.get(&format!("/tokens/{}", made["id"].as_str().unwrap()), &api.admin).await.ok(200);
    assert_eq!(first["revoked_at"], first["expires_at"]);
}

#[tokio::test]
async fn the_last_use_is_shown_at_once_and_written_later() {
    let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let of = clock.clone();
    let api = api_of(http::Settings::default(), move |setup| setup.clock = of).await;
    let made = api.post("/tokens", &api.admin, json!({"name": "t", "scope": "read"})).await.ok(201);
    let (id, secret) = (made["id"].as_str().unwrap().parse().unwrap(), made["token"].as_str().unwrap());
    assert_eq!(made["last_used_at"], Value::Null);
    let shown = async || api.get(&format!("/tokens/{id}"), &api.admin).await.ok(200)["last_used_at"].clone();
    assert_eq!(shown().await, Value::Null);
    let stored = async || api.reader.token(id).await.unwrap().unwrap().last_used_at.map(|at| at.to_string());
    for _ in 0..3 {
        clock.advance(Duration::from_secs(1));
        api.get("/vms", secret).await.ok(200);
    }
    assert_eq!(shown().await, "2026-01-01T00:00:03.000Z");
    assert_eq!(stored().await, None, "a request wrote");
    api.ledger.store_uses(&api.parts.token_uses).await.unwrap();
    assert_eq!(stored().await.as_deref(), Some("2026-01-01T00:00:03Z"));
    assert_eq!(shown().await, "2026-01-01T00:00:03.000Z");
    // A refused token is not used.
    api.get("/tokens", "mfa_nobody").await.problem(401, "auth.required");
}

#[tokio::test]
async fn limits_that_cannot_be_are_refused_with_their_place() {
    let api = api().await;
    for (scope, limits, at) in [
        ("admin", json!({"max_cpus": 1}), "/limits"),
        ("read", json!({"max_cpus": 1}), "/limits"),
        ("create", json!({}), "/limits"),
        ("create", json!({"priority": 1}), "/limits/priority"),
        ("create", json!({"max_cpus": 0}), "/limits/max_cpus"),
        ("create", json!({"max_live_vms": 0}), "/limits/max_live_vms"),
        ("create", json!({"github_scopes": ["a/b/c"]}), "/limits/github_scopes/0"),
        ("create", json!({"templates": ["ghcr.io/acme/*"]}), "/limits/templates/0"),
    ] {
        let body = json!({"name": "x", "scope": scope, "limits": limits});
        let problem = api.post("/tokens", &api.admin, body).await.problem(400, "request.invalid");
        assert_eq!(pointer(&problem), at, "{problem:#}");
    }
    api.get("/tokens/nope", &api.admin).await.problem(404, "token.not_found");
    api.get("/tokens/00000000-0000-0000-0000-000000000000", &api.admin).await.problem(404, "token.not_found");
    let made = api.post("/tokens", &api.admin, json!({"name": "x", "scope": "create"})).await.ok(201);
    let path = format!("/tokens/{}", made["id"].as_str().unwrap());
    let got = api.get(&path, &api.admin).await;
    assert!(!got.text.contains(made["token"].as_str().unwrap()));
    assert_eq!(got.header(header::CONTENT_TYPE.as_str()), "application/json");
    api.get(&path, &api.create).await.problem(403, "auth.scope_missing");
}
