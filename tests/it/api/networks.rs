//! What guests may reach: set by a request, a pool or a template, resolved and refused.

use std::sync::Arc;

use mayfly::{
    domain::{NetworkMode, NetworkSupport},
    drivers::{
        fake::{Fake, FakeWorld},
        registry::DriverRegistry,
    },
    http,
    sources::github::{CredentialLocation, GitHubClient, GitHubOptions, Server},
};
use serde_json::{Value, json};

use super::{Api, api_of, disk, pointer};
use crate::support::{
    Serve,
    registry::Registry as ImageRegistry,
    sources::only_github,
    tart_image::{Content, Encoding, TartImage},
};

const REMEDY: &str = "close the door";

/// A service whose driver enforces what the world says, and which has credentials for GitHub.
async fn rig() -> (Api, Arc<FakeWorld>) {
    let world = FakeWorld::new();
    let server = Server::new("https://github.com", Some("http://127.0.0.1:9")).unwrap();
    let location = CredentialLocation::Token("ghp_hush-hush".to_owned().into());
    let github = GitHubClient::new(GitHubOptions::new(server), location).unwrap();
    let drivers = DriverRegistry::default().with(Arc::new(Fake::new(world.clone())));
    let api = api_of(http::Settings::default(), |setup| {
        setup.drivers = drivers;
        setup.sources = only_github(Arc::new(github));
    })
    .await;
    (api, world)
}

fn only_host() -> NetworkSupport {
    NetworkSupport::default().without(NetworkMode::Isolated, REMEDY).without(NetworkMode::Internet, REMEDY)
}

fn request(runner: Value, network: Option<&str>) -> Value {
    let mut body = json!({"template": "micro", "runner": runner});
    if let Some(network) = network {
        body["network"] = network.into();
    }
    body
}

impl Api {
    async fn mode(&self, body: Value) -> Value {
        self.post("/vms", &self.create, body).await.ok(201)["network"].clone()
    }
}

#[tokio::test]
async fn a_vm_shows_the_mode_that_its_runner_needs_or_that_was_asked_for() {
    let (api, world) = rig().await;
    let github = json!({"kind": "github", "scope": "acme", "labels": ["x"]});
    let kinds = [
        (json!({"kind": "none"}), "isolated"),
        (json!({"kind": "command", "command": "true"}), "isolated"),
        (json!({"kind": "script", "script": "true"}), "internet"),
        (github, "internet"),
    ];
    for (runner, default) in &kinds {
        assert_eq!(api.mode(request(runner.clone(), None)).await, *default, "{runner}");
        for asked in ["isolated", "internet", "host"] {
            assert_eq!(api.mode(request(runner.clone(), Some(asked))).await, asked, "{runner}");
        }
    }
    world.enforces(only_host());
    for (runner, _) in &kinds {
        assert_eq!(api.mode(request(runner.clone(), None)).await, "host", "{runner}");
    }
    // The settings of a driver, such as `drivers.qemu.isolated`.
    world.enforces(NetworkSupport::default().by_default(Some(NetworkMode::Isolated)));
    for (runner, _) in &kinds {
        assert_eq!(api.mode(request(runner.clone(), None)).await, "isolated", "{runner}");
        assert_eq!(api.mode(request(runner.clone(), Some("host"))).await, "host", "{runner}");
    }
    let wrong = request(json!({"kind": "none"}), Some("intranet"));
    let problem = api.post("/vms", &api.create, wrong).await.problem(400, "request.invalid");
    assert_eq!(pointer(&problem), "/network");
}

#[tokio::test]
async fn the_mode_is_part_of_a_repeated_request() {
    let (api, _) = rig().await;
    let named = |network| {
        let mut body = request(json!({"kind": "none"}), network);
        body["name"] = "n".into();
        body
    };
    let one = api.post("/vms", &api.create, named(Some("internet"))).await.ok(201);
    assert_eq!(api.post("/vms", &api.create, named(Some("internet"))).await.ok(200)["id"], one["id"]);
    for other in [None, Some("host")] {
        api.post("/vms", &api.create, named(other)).await.problem(422, "vm.name_in_use");
    }
}

#[tokio::test]
async fn a_mode_that_cannot_be_enforced_is_refused_with_its_remedy() {
    let (api, world) = rig().await;
    let template = |name: &str, network: &str| {
        let file = disk(&api.dir, &format!("{name}.raw"), 3);
        json!({"name": name, "driver": "fake", "disk": file, "network": network})
    };
    let shown = api.post("/templates", &api.admin, template("closed", "isolated")).await.ok(201);
    assert_eq!(shown["network"], "isolated");
    let pool = |template: &str, network: Value| json!({"template": template, "scope": "acme", "labels": ["linux"], "network": network});
    let set = |name: &'static str, body| api.put(name, &api.admin, body);
    assert_eq!(set("/pools/online", pool("micro", json!("internet"))).await.ok(201)["network"], "internet");
    assert_eq!(set("/pools/plain", pool("closed", json!(null))).await.ok(201)["network"], json!(null));
    let of_pool = async |name: &str, key: &str| {
        let pool = api.services.pools.get(name).await.unwrap().pool;
        api.services.admission.create_for_pool(&pool, &7.into(), key.to_owned()).await
    };
    assert_eq!(of_pool("online", "1").await.unwrap().vm.spec.resolved().unwrap().network, Some(NetworkMode::Internet));
    // The template's mode, not the default of the pool's runners.
    assert_eq!(of_pool("plain", "2").await.unwrap().vm.spec.resolved().unwrap().network, Some(NetworkMode::Isolated));
    let over = json!({"template": "closed", "network": "host"});
    assert_eq!(api.mode(over).await, "host");

    world.enforces(only_host());
    let refused = |problem: Value, who: &str| {
        assert_eq!((pointer(&problem), &problem["errors"][0]["detail"]), ("/network", &json!(REMEDY)), "{problem:#}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(who) && detail.ends_with(REMEDY), "{detail}");
    };
    let asked = request(json!({"kind": "none"}), Some("internet"));
    refused(api.post("/vms", &api.create, asked).await.problem(422, "network.not_enforceable"), "the request asks");
    let of_template = json!({"template": "closed"});
    let answer = api.post("/vms", &api.create, of_template).await;
    refused(answer.problem(422, "network.not_enforceable"), "the template closed asks for `network: isolated`");
    let answer = api.post("/templates", &api.admin, template("late", "internet")).await;
    refused(answer.problem(422, "network.not_enforceable"), "the template asks for `network: internet`");
    let answer = set("/pools/new", pool("micro", json!("isolated"))).await;
    refused(answer.problem(422, "network.not_enforceable"), "the pool new asks for `network: isolated`");

    // Pools that were set before say it as their fault.
    for (name, who) in [("online", "the pool online asks"), ("plain", "the template closed asks")] {
        assert!(of_pool(name, "3").await.err().unwrap().detail.contains(who));
        let fault = api.get(&format!("/pools/{name}"), &api.read).await.ok(200)["last_error"].clone();
        assert_eq!(fault["code"], "network.not_enforceable");
        assert!(fault["detail"].as_str().unwrap().contains(who), "{fault}");
    }
    assert_eq!(api.mode(request(json!({"kind": "none"}), Some("host"))).await, "host");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_shows_what_its_drivers_enforce() {
    let tart = [
        ("MAYFLY_DRIVERS__QEMU__ACCELERATOR", "tcg"),
        ("MAYFLY_DRIVERS__TART__ENABLED", "true"),
        ("MAYFLY_DRIVERS__TART__HOME", "tart"),
        ("MAYFLY_GUEST__LISTEN", "127.0.0.1:0"),
    ];
    let serve = Serve::start(&tart).await;
    let mut host = serve.get("/host").await;
    while host["observed"] != true {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        host = serve.get("/host").await;
    }
    let networks = |name: &str| {
        let drivers = host["drivers"].as_array().unwrap();
        drivers.iter().find(|driver| driver["name"] == name).unwrap()["networks"].clone()
    };
    let (always, never) = (json!(null), json!([]));
    let mode = |mode: &str, remedy: &Value, kinds: Value| json!({"mode": mode, "enforceable": remedy.is_null(), "remedy": remedy, "default_for": kinds});
    assert_eq!(
        networks("qemu"),
        json!([
            mode("isolated", &always, json!(["command", "none"])),
            mode("internet", &always, json!(["script", "github", "gitea", "buildkite"])),
            mode("host", &always, never.clone()),
        ])
    );
    let softnet = json!("set drivers.tart.network = \"softnet\" in mayfly.toml and restart the service");
    assert_eq!(
        networks("tart"),
        json!([
            mode("isolated", &softnet, never.clone()),
            mode("internet", &softnet, never.clone()),
            mode("host", &always, json!(["command", "script", "github", "gitea", "buildkite", "none"])),
        ])
    );
}

/// Only when the image is here is it known which driver runs it.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_waited_for_its_image_fails_if_its_mode_cannot_be_enforced() {
    let registry = ImageRegistry::open().await;
    let image = TartImage::new(&[Content::Text(1, 1 << 20)], Encoding::Linked);
    image.push(&registry, "ci/base", "1").await;
    let ca_file = registry.authority.file().display().to_string();
    let serve = Serve::start(&[
        ("MAYFLY_REGISTRY__CA_FILE", ca_file.as_str()),
        ("MAYFLY_DRIVERS__QEMU__ENABLED", "false"),
        ("MAYFLY_DRIVERS__TART__ENABLED", "true"),
        ("MAYFLY_DRIVERS__TART__HOME", "tart"),
        ("MAYFLY_GUEST__LISTEN", "127.0.0.1:0"),
    ])
    .await;
    let vm = serve.create(json!({"template": format!("{}/ci/base:1", registry.address), "network": "internet"})).await;
    assert_eq!(vm["network"], json!(null));
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    let outcome = &end["outcome"];
    assert_eq!(
        (&end["end_signal"], &outcome["code"]),
        (&json!("given_up"), &json!("network.not_enforceable")),
        "{end:#}"
    );
    let detail = outcome["detail"].as_str().unwrap();
    assert!(detail.contains("the request asks for `network: internet`") && detail.contains("softnet"), "{detail}");
}
