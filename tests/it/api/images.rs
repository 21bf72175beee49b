//! A vm that asks for an image by its reference: it waits for it, and holds nothing meanwhile.

use serde_json::{Value, json};

use crate::support::{
    Serve,
    proxy::{Fault, Proxy, Rule},
    registry::Registry,
    tart_image::{Content, Encoding, TartImage},
};

fn image() -> TartImage {
    TartImage::new(&[Content::Text(1, 1 << 20), Content::Zeros(1 << 20), Content::Noise(2, 1 << 20)], Encoding::Linked)
}

/// With one slot for Linux guests, on a driver whose guests never say a word. What is pulled is for a driver that is not here.
async fn serve(registry: &Registry) -> Serve {
    let ca_file = registry.authority.file().display().to_string();
    let settings = [
        ("MAYFLY_REGISTRY__CA_FILE", ca_file.as_str()),
        ("MAYFLY_DRIVERS__QEMU__ENABLED", "false"),
        ("MAYFLY_DRIVERS__FAKE__ENABLED", "true"),
        ("MAYFLY_SLOTS__LINUX", "1"),
    ];
    let serve = Serve::start(&settings).await;
    let disk = serve.dir.join("disk.img");
    std::fs::write(&disk, vec![7; 4096]).unwrap();
    let (status, template) = serve
        .post("/templates", json!({"name": "here", "driver": "fake", "disk": disk, "cpus": 1, "memory_mib": 64}))
        .await;
    assert_eq!(status, 201, "{template}");
    serve
}

fn unknown(vm: &Value) -> bool {
    ["template_digest", "driver", "os", "cpus", "memory_mib"].iter().all(|field| vm[field].is_null())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_waits_for_its_image_without_a_slot_and_says_how_far_it_is() {
    let registry = Registry::open().await;
    let image = image();
    let digest = image.push(&registry, "ci/base", "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let noise = image.chunk(2);
    let half = noise.blob.len() as u64 / 2;
    proxy.on(Rule::get(&format!("*{}", noise.digest()), Fault::Hold { after: half }));
    let mut serve = serve(&registry).await;
    let reference = format!("{}/ci/base:1", proxy.address());
    let request = json!({"template": reference, "name": "waits", "runner": {"kind": "none"}, "cpus": 2});
    let vm = serve.create(request.clone()).await;
    assert_eq!((&vm["template"], &vm["queue"]["reason"]), (&json!(reference), &json!("template")), "{vm:#}");
    assert!(unknown(&vm), "{vm:#}");
    let id = vm["id"].as_str().unwrap().to_owned();

    // How far an image is does not count as a change of the vm, so it is asked for again and again.
    let percent = async |least: u64| {
        for _ in 0..600 {
            let vm = serve.get(&format!("/vms/{id}")).await;
            if let Some(percent) = vm["queue"]["pull"]["percent"].as_u64()
                && percent >= least
            {
                return vm;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{:#}", serve.get(&format!("/vms/{id}")).await);
    };
    let vm = percent(20).await;
    let pull = &vm["queue"]["pull"];
    assert!(pull["percent"].as_u64().unwrap() < 100, "{vm:#}");
    assert!(pull["bytes_done"].as_u64().unwrap() < pull["bytes_total"].as_u64().unwrap(), "{vm:#}");
    assert_eq!(vm["state"], "queued");

    // Whoever came later and needs nothing from afar has the slot.
    let other = serve.create(json!({"template": "here", "runner": {"kind": "none"}})).await;
    serve.wait(other["id"].as_str().unwrap(), "it has the slot", |vm| vm["state"] == "booting").await;

    // The same request is the same vm, and whoever dies meanwhile goes on.
    let (status, again) = serve.post("/vms", request.clone()).await;
    assert_eq!((status, &again["id"]), (200, &vm["id"]));
    serve.kill();
    let fetched = proxy.asked("GET", &image.chunk(0).digest()).len();
    serve.spawn().await;
    let vm = serve.get(&format!("/vms/{id}")).await;
    assert_eq!((&vm["state"], &vm["queue"]["reason"]), (&json!("queued"), &json!("template")), "{vm:#}");
    proxy.clear();
    proxy.release();

    let end = serve.wait_state(&id, "deleted").await;
    assert_eq!(
        (&end["end_signal"], &end["outcome"]["code"]),
        (&json!("given_up"), &json!("driver.unsupported")),
        "{end:#}"
    );
    assert!(end["outcome"]["detail"].as_str().unwrap().contains("tart"), "{end:#}");
    assert_eq!(proxy.asked("GET", &image.chunk(0).digest()).len(), fetched, "what was here was fetched again");

    // By its digest it is found without asking anybody, and it has no name.
    let asked = proxy.seen().len();
    let pinned = format!("{}/ci/base@{digest}", proxy.address());
    let vm = serve.create(json!({"template": pinned, "runner": {"kind": "none"}, "cpus": 2})).await;
    assert_eq!((&vm["os"], &vm["driver"], &vm["cpus"]), (&json!("macos"), &json!("tart"), &json!(2)), "{vm:#}");
    assert_eq!(proxy.seen().len(), asked);
    let names = serve.get("/templates").await;
    assert_eq!(names["items"].as_array().unwrap().len(), 1, "{names:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_image_adds_is_within_the_limits_of_the_token_that_asked() {
    let registry = Registry::open().await;
    image().push(&registry, "ci/base", "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let serve = serve(&registry).await;
    let limits = json!({"images": [format!("{}/ci/*", proxy.address())], "max_memory_mib": 32});
    let (status, token) = serve.post("/tokens", json!({"name": "small", "scope": "create", "limits": limits})).await;
    assert_eq!(status, 201, "{token}");
    let secret = token["token"].as_str().unwrap();
    let create = async |image: &str| {
        let body = json!({"template": format!("{}/{image}", proxy.address())});
        serve.send_as(secret, reqwest::Method::POST, "/vms", Some(body)).await
    };
    let (status, refused) = create("other/base:1").await;
    assert_eq!((status, &refused["code"]), (403, &json!("auth.limit_exceeded")), "{refused:#}");
    assert_eq!(proxy.seen().len(), 0, "the registry was asked for an image that is not allowed");

    // How much memory it has is known when the image is here.
    let (status, vm) = create("ci/base:1").await;
    assert_eq!(status, 201, "{vm:#}");
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!(end["outcome"]["code"], "auth.limit_exceeded", "{end:#}");
    assert!(end["outcome"]["detail"].as_str().unwrap().contains("`max_memory_mib`"), "{end:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_ends_with_its_only_vm() {
    let registry = Registry::open().await;
    let image = image();
    image.push(&registry, "ci/base", "1").await;
    let proxy = Proxy::before(&registry).start().await;
    proxy.on(Rule::get(&format!("*{}", image.chunk(2).digest()), Fault::Hold { after: 1000 }));
    let serve = serve(&registry).await;
    let vm = serve.create(json!({"template": format!("{}/ci/base:1", proxy.address())})).await;
    let id = vm["id"].as_str().unwrap();
    proxy
        .until("the last chunk is asked for", |all| all.iter().any(|s| s.path.ends_with(&image.chunk(2).digest())))
        .await;
    let (status, _) = serve.delete(&format!("/vms/{id}")).await;
    assert_eq!(status, 202);
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!((&end["end_signal"], &end["outcome"]["result"]), (&json!("admin"), &json!("cancelled")), "{end:#}");
    assert!(unknown(&end), "{end:#}");
    // A pull that had gone on would have the rest of its chunk now, and nobody would ask for that again.
    proxy.clear();
    proxy.release();
    serve.create(json!({"template": format!("{}/ci/base:1", proxy.address())})).await;
    let digest = image.chunk(2).digest();
    proxy
        .until("the last chunk is asked for again", |all| all.iter().filter(|s| s.path.ends_with(&digest)).count() == 2)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn permanent_and_temporary_failures_of_images_are_distinguished() {
    let registry = Registry::open().await;
    image().push(&registry, "ci/base", "1").await;
    let proxy = Proxy::before(&registry).start().await;
    let serve = serve(&registry).await;
    let at = |what: &str| format!("{}/{what}", proxy.address());

    for (body, status, code, field) in [
        (json!({"template": "no registry/x"}), 400, "request.invalid", "/template"),
        (json!({"template": at("ci/base:1"), "queue_timeout_seconds": 0}), 409, "slot.unavailable", ""),
        (json!({"template": at("ci/base:1"), "cpus": 100_000}), 422, "size.impossible", "/cpus"),
        (
            json!({"template": at("ci/base:1"), "budgets": {"boot_seconds": 0}}),
            400,
            "request.invalid",
            "/budgets/boot_seconds",
        ),
    ] {
        let (answered, problem) = serve.post("/vms", body.clone()).await;
        assert_eq!((answered, &problem["code"]), (status, &json!(code)), "{body}: {problem}");
        assert_eq!(problem["errors"][0]["pointer"].as_str().unwrap_or_default(), field, "{problem}");
    }
    assert!(serve.get("/vms").await["items"].as_array().unwrap().is_empty());

    let vm = serve.create(json!({"template": at("ci/base:none")})).await;
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!((&end["end_signal"], &end["outcome"]["code"]), (&json!("given_up"), &json!("image.refused")), "{end:#}");

    // The registry asks for a pause.
    proxy.on(Rule::get("/v2/ci/busy/manifests/*", Fault::retry_after(429, "3600")));
    let busy = serve.create(json!({"template": at("ci/busy:1"), "queue_timeout_seconds": 600})).await;
    let busy = busy["id"].as_str().unwrap();
    let vm = serve.wait(busy, "it says what is wrong", |vm| !vm["last_fault"].is_null()).await;
    assert_eq!((&vm["state"], &vm["last_fault"]["code"]), (&json!("queued"), &json!("image.unavailable")), "{vm:#}");

    // Nobody listens on the discard port.
    let vm = serve.create(json!({"template": "127.0.0.1:9/ci/base:1", "queue_timeout_seconds": 600})).await;
    let id = vm["id"].as_str().unwrap();
    let vm = serve.wait(id, "it says what is wrong", |vm| !vm["last_fault"].is_null()).await;
    assert_eq!((&vm["state"], &vm["last_fault"]["code"]), (&json!("queued"), &json!("image.unavailable")), "{vm:#}");
    // That took many of the usual pauses.
    assert_eq!(proxy.asked("GET", "/ci/busy/manifests/1").len(), 1);
    for id in [id, busy] {
        serve.delete(&format!("/vms/{id}")).await;
        serve.wait_state(id, "deleted").await;
    }
}
