use std::time::{Duration, Instant};

use mayfly::{
    admission::vms::Settings,
    domain::{Event, State, VmId},
    service,
};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Got, api, api_with, pointer};

#[tokio::test]
async fn a_vm_is_created_read_listed_and_ended() {
    let api = api().await;
    let body = json!({
        "template": "micro", "name": "one", "labels": {"team.x/y": "a=b"},
        "runner": {"kind": "command", "command": "secret-command", "env": {"K": "secret-value"}},
    });
    let got = api.post("/vms", &api.create, body).await;
    let vm = got.ok(201);
    let path = format!("/vms/{}", vm["id"].as_str().unwrap());
    assert_eq!(got.header("location"), path);
    assert_eq!(got.header("cache-control"), "no-store");
    assert!(vm["callback_token"].as_str().unwrap().starts_with("mfv_"));
    assert!(!got.text.contains("secret-"), "{}", got.text);
    assert_eq!(vm["state"], "queued");
    assert_eq!(vm["queue"]["position"], 1);
    assert_eq!(vm["queue"]["reason"], "slot");
    assert_eq!(vm["deadline"]["budget"], "queue");
    assert_eq!(
        vm["runner"],
        json!({"kind": "command", "status": "none", "started": "no", "separate_users": null, "github": null, "gitea": null, "buildkite": null})
    );
    let time = vm["created_at"].as_str().unwrap();
    assert_eq!(time.len(), "2026-11-20T09:00:00.000Z".len(), "{time}");

    let read = api.get(&path, &api.read).await.ok(200);
    assert_eq!(read["callback_token"], Value::Null, "shown by POST only");
    let mut expected = vm.clone();
    expected.as_object_mut().unwrap().remove("callback_token");
    assert_eq!(read, expected);

    let list =
        api.get("/vms?label=team.x/y%3Da%3Db&state=queued&state=running&name=one&template=micro", &api.read).await;
    assert_eq!(list.ok(200)["items"][0]["id"], vm["id"]);
    let none = api.get("/vms?label=team.x/y%3Dother", &api.read).await.ok(200);
    assert_eq!(none, json!({"items": [], "next_cursor": null}));

    let id = vm["id"].as_str().unwrap();
    for (query, found) in [
        (format!("id_prefix={}", &id[..23]), 1),
        (format!("id_prefix={}", id.to_uppercase()), 1),
        ("id_prefix=0000".to_owned(), 0),
        ("name_prefix=o".to_owned(), 1),
        ("name_prefix=one".to_owned(), 1),
        ("name_prefix=ones".to_owned(), 0),
        ("outcome=cancelled".to_owned(), 0),
        (format!("created_since={}", vm["created_at"].as_str().unwrap()), 1),
        ("created_since=2000-01-01T00:00:00Z".to_owned(), 1),
        ("created_since=1800-01-01T00:00:00Z".to_owned(), 1),
        ("created_since=2222-01-01T00:00:00Z".to_owned(), 0),
    ] {
        let list = api.get(&format!("/vms?{query}"), &api.read).await.ok(200);
        assert_eq!(list["items"].as_array().unwrap().len(), found, "{query}");
    }

    // A queued vm has nothing to drain.
    let ended = api.delete(&path, &api.create).await.ok(202);
    assert_eq!((&ended["state"], &ended["end_signal"]), (&json!("deleted"), &json!("admin")));
    let again = api.delete(&path, &api.create).await.ok(200);
    assert_eq!(again["outcome"]["result"], "cancelled");
    assert!(again["deleted_at"].is_string());
    api.delete(&format!("/vms/{}", VmId::mint()), &api.create).await.problem(404, "vm.not_found");
    assert_eq!(api.get("/vms", &api.read).await.ok(200)["items"], json!([]), "deleted ones are listed when asked for");
    for query in ["state=deleted", "outcome=cancelled", "outcome=cancelled&label=team.x/y%3Da%3Db&state=deleted"] {
        let list = api.get(&format!("/vms?{query}"), &api.read).await.ok(200);
        assert_eq!(list["items"].as_array().unwrap().len(), 1, "{query}");
    }
    let failed = api.get("/vms?outcome=failed", &api.read).await.ok(200);
    assert_eq!(failed["items"], json!([]));
}

#[tokio::test]
async fn a_repeated_request_gives_the_same_vm() {
    let api = api().await;
    let post = async |key: &str, body: Value| {
        let request = api.request(Method::POST, "/vms", &api.create).header("Idempotency-Key", key).json(&body);
        Got::of(request.send().await.unwrap()).await
    };
    let body = json!({"template": "micro", "cpus": 1});
    let first = post("k1", body.clone()).await.ok(201);
    // Spacing and order of the JSON do not make another request.
    let request = api
        .request(Method::POST, "/vms", &api.create)
        .header("Idempotency-Key", "k1")
        .header("Content-Type", "application/json")
        .body("{ \"cpus\": 1,\n\"template\": \"micro\" }");
    let second = Got::of(request.send().await.unwrap()).await.ok(200);
    assert_eq!(first, second, "the token too: the first answer may have been lost");
    let other = post("k1", json!({"template": "micro", "cpus": 2})).await.problem(422, "idempotency.mismatch");
    assert_eq!(pointer(&other), "header:Idempotency-Key");
    assert!(other["detail"].as_str().unwrap().contains(first["id"].as_str().unwrap()), "{other}");
    post("k 2", body.clone()).await.problem(400, "request.invalid");
    post(&"k".repeat(256), body.clone()).await.problem(400, "request.invalid");

    let named = json!({"template": "micro", "name": "n"});
    let one = api.post("/vms", &api.create, named.clone()).await.ok(201);
    assert_eq!(api.post("/vms", &api.create, named).await.ok(200)["id"], one["id"]);
    let taken = json!({"template": "micro", "name": "n", "cpus": 2});
    let taken = api.post("/vms", &api.create, taken).await.problem(422, "vm.name_in_use");
    assert_eq!(pointer(&taken), "/name");
}

/// A caller that lost the answer asks again, whatever has become of the template or the vm, and with new credentials.
#[tokio::test]
async fn a_repeated_request_is_recognised_before_it_is_validated() {
    let api = api().await;
    let post = async |key: &str, body: Value| {
        let request = api.request(Method::POST, "/vms", &api.create).header("Idempotency-Key", key).json(&body);
        Got::of(request.send().await.unwrap()).await
    };
    let runner = |token: &str, value: &str| {
        json!({"template": "micro", "name": "n", "runner": {
            "kind": "github", "scope": "acme/app", "labels": ["vm"], "registration_token": token, "env": {"V": value}}})
    };
    let first = post("k", runner("first", "1")).await.ok(201);
    let id = first["id"].as_str().unwrap();
    assert_eq!(post("k", runner("second", "2")).await.ok(200)["id"], id);
    // By the name alone, too.
    assert_eq!(api.post("/vms", &api.create, runner("third", "3")).await.ok(200)["id"], id);
    let mut other = runner("first", "1");
    other["runner"]["env"] = json!({"V": "1", "W": "2"});
    let mismatch = post("k", other).await.problem(422, "idempotency.mismatch");
    assert!(mismatch["detail"].as_str().unwrap().contains(id), "{mismatch}");

    let command = |text: &str| json!({"template": "micro", "runner": {"kind": "command", "command": text}});
    let made = post("c", command("make test")).await.ok(201);
    post("c", command("make all")).await.problem(422, "idempotency.mismatch");

    // The vms end, and their template goes.
    for vm in [&first, &made] {
        api.finish(vm["id"].as_str().unwrap().parse().unwrap()).await;
    }
    api.delete("/templates/micro", &api.admin).await.ok(204);
    post("new", command("make test")).await.problem(422, "template.unknown");
    assert_eq!(post("c", command("make test")).await.ok(200)["id"], made["id"]);
    assert_eq!(post("k", runner("fourth", "4")).await.ok(200)["state"], "deleted");
    post("c", command("make all")).await.problem(422, "idempotency.mismatch");
}

#[tokio::test]
async fn what_cannot_be_served_says_why() {
    let api = api_with(
        Default::default(),
        service::Settings { vms: Settings { max_queued: 2, ..Default::default() }, ..Default::default() },
    )
    .await;
    let unknown = api.post("/vms", &api.create, json!({"template": "nope"})).await.problem(422, "template.unknown");
    assert_eq!(pointer(&unknown), "/template");
    let large = json!({"template": "micro", "cpus": 99});
    let large = api.post("/vms", &api.create, large).await.problem(422, "size.impossible");
    assert_eq!(pointer(&large), "/cpus");
    for _ in 0..2 {
        api.post("/vms", &api.create, json!({"template": "micro"})).await.ok(201);
    }
    let full = api.post("/vms", &api.create, json!({"template": "micro"})).await;
    full.problem(429, "queue.full");
    assert!(full.header("retry-after").parse::<u32>().unwrap() > 0);
    let now = json!({"template": "micro", "queue_timeout_seconds": 0});
    let refused = api.post("/vms", &api.create, now).await;
    refused.problem(409, "slot.unavailable");
    assert!(refused.header("retry-after").parse::<u32>().unwrap() > 0);
}

#[tokio::test]
async fn a_listing_is_paged_without_gaps_or_repeats() {
    let api = api().await;
    for n in 0..7 {
        api.vm(&format!("v{n}")).await;
    }
    let mut names = Vec::new();
    let mut positions = Vec::new();
    let mut path = "/vms?limit=3".to_owned();
    loop {
        let page = api.get(&path, &api.read).await.ok(200);
        for vm in page["items"].as_array().unwrap() {
            names.push(vm["name"].as_str().unwrap().to_owned());
            positions.push(vm["queue"]["position"].as_i64().unwrap());
        }
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/vms?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(names, ["v6", "v5", "v4", "v3", "v2", "v1", "v0"]);
    assert_eq!(positions, [7, 6, 5, 4, 3, 2, 1]);
    for (query, field) in [
        ("limit=0", "query:limit"),
        ("limit=201", "query:limit"),
        ("limit=x", "query:limit"),
        ("cursor=zzz", "query:cursor"),
        ("state=asleep", "query:state"),
        ("label=team", "query:label"),
        ("label=a%22b%3Dc", "query:label"),
        ("stat=queued", "query:stat"),
        ("outcome=good", "query:outcome"),
        ("created_since=yesterday", "query:created_since"),
        ("id_prefix=019", "query:id_prefix"),
        ("id_prefix=x1234", "query:id_prefix"),
    ] {
        let problem = api.get(&format!("/vms?{query}"), &api.read).await.problem(400, "request.invalid");
        assert_eq!(pointer(&problem), field, "{query}");
    }
}

#[tokio::test]
async fn a_vm_with_a_job_drains_and_force_does_not_wait() {
    let api = api().await;
    let (id, token) = api.running("hooked").await;
    let path = format!("/vms/{id}");
    let vm = api.delete(&path, &token).await.ok(202);
    assert_eq!((vm["state"].as_str(), vm["announced_by"].as_str()), (Some("draining"), Some("hook")));
    let generation = vm["generation"].clone();
    for token in [&token, &api.create] {
        let again = api.delete(&path, token).await.ok(202);
        assert_eq!(again["generation"], generation, "asking again changes nothing");
    }
    let forced = api.delete(&format!("{path}?force=true"), &api.create).await.ok(202);
    assert_eq!(forced["state"], "stopping");
    api.finish(id).await;
    let gone = api.delete(&path, &token).await.ok(200);
    assert_eq!(gone["state"], "deleted");
    let states: Vec<_> = gone["timeline"].as_array().unwrap().iter().map(|t| t["state"].as_str().unwrap()).collect();
    assert_eq!(
        states,
        ["queued", "cloning", "booting", "configuring", "running", "draining", "stopping", "deleting", "deleted"]
    );
}

#[tokio::test]
async fn a_long_poll_answers_when_something_happens() {
    let api = api().await;
    let (id, _) = api.vm("polled").await;
    let wait = |generation: i64, seconds: u32| {
        let path = format!("/vms/{id}?wait_generation={generation}&timeout_seconds={seconds}");
        api.request(Method::GET, &path, &api.read).send()
    };
    let vm = Got::of(wait(0, 60).await.unwrap()).await.ok(200);
    assert_eq!(vm["generation"], 1, "what was there already needs no wait");
    let same = Got::of(wait(1, 0).await.unwrap()).await.ok(200);
    assert_eq!(same["generation"], 1, "the wait is over");

    let waiting = tokio::spawn(wait(1, 60));
    api.apply(id, Event::SlotTaken).await;
    let vm = Got::of(waiting.await.unwrap().unwrap()).await.ok(200);
    assert_eq!((vm["generation"].as_i64(), vm["state"].as_str()), (Some(2), Some("cloning")));
    assert_eq!(vm["queue"], Value::Null);

    api.get(&format!("/vms/{id}?timeout_seconds=61"), &api.read).await.problem(400, "request.invalid");
    let unknown = format!("/vms/{}?wait_generation=1", VmId::mint());
    api.get(&unknown, &api.read).await.problem(404, "vm.not_found");
}

#[tokio::test]
async fn a_shutdown_answers_waiting_requests() {
    let mut api = api().await;
    let (id, _) = api.vm("polled").await;
    let path = format!("/vms/{id}?wait_generation=1&timeout_seconds=60");
    let waiting = tokio::spawn(api.request(Method::GET, &path, &api.read).send());
    // The request is on its way once its connection is being served; a moment later or earlier makes no difference.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let began = Instant::now();
    api.stop().await;
    let vm = Got::of(waiting.await.unwrap().unwrap()).await.ok(200);
    assert_eq!(vm["state"], State::Queued.as_str());
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(tokio::net::TcpStream::connect(api.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn the_way_into_a_guest_ends_with_the_guest() {
    use mayfly::domain::endpoint::Endpoint;
    let api = api().await;
    let (id, _) = api.running("one").await;
    let ssh = Endpoint::address("127.0.0.1", 2222);
    api.apply(id, Event::EndpointFound { ssh, host_key: None }).await;
    let path = format!("/vms/{id}");
    assert_eq!(api.get(&path, &api.read).await.ok(200)["ssh"], json!({"host": "127.0.0.1", "port": 2222}));
    api.finish(id).await;
    assert_eq!(api.get(&path, &api.read).await.ok(200)["ssh"], json!(null));
}
