//! A new version's test in a real guest, from an image in a real registry.

use serde_json::{Value, json};

use crate::support::{
    registry::Registry,
    tart::{self, Mac},
    tart_image::{Encoding, TartImage},
};

/// The image of the guest with so much memory, which makes it a version of its own.
async fn push(mac: &Mac, registry: &Registry, tag: &str, memory_mib: u64) -> String {
    let mut config = tart::config("darwin");
    config["memorySize"] = json!(memory_mib << 20);
    let disk = std::fs::read(mac.serve.dir.join("base/disk.img")).unwrap();
    TartImage::of_disk(&config, &disk, Encoding::Stored).push(registry, "ci/mac", tag).await;
    format!("{}/ci/mac:{tag}", registry.address)
}

/// The pull once it has ended.
async fn pull(mac: &Mac, image: &str, canary: Value) -> Value {
    let body = json!({"name": "mac", "image": image, "user": "runner", "canary": canary});
    let (status, mut pull) = mac.serve.post("/templates", body).await;
    assert_eq!(status, 202, "{pull}");
    let path = format!("/pulls/{}", pull["id"].as_str().unwrap());
    for _ in 0..20 {
        if !pull["ended_at"].is_null() {
            return pull;
        }
        let generation = &pull["generation"];
        pull = mac.serve.get(&format!("{path}?timeout_seconds=10&wait_generation={generation}")).await;
    }
    panic!("stuck: {pull:#}\n{}", mac.serve.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_decides_whether_the_name_moves() {
    let registry = Registry::open().await;
    let ca_file = registry.authority.file().display().to_string();
    let mac = Mac::with("darwin", &[("MAYFLY_REGISTRY__CA_FILE", &ca_file)]).await;
    let serve = &mac.serve;

    let good = push(&mac, &registry, "good", 192).await;
    let passed = pull(&mac, &good, json!({"command": "echo \"ran on $(uname -s)\""})).await;
    assert_eq!(passed["state"], "done", "{passed:#}\n{}", serve.log());
    assert_eq!(serve.get("/templates/mac").await["digest"], passed["digest"]);
    assert!(serve.log_of(passed["vm_id"].as_str().unwrap(), "job").await.contains("ran on"));

    let bad = push(&mac, &registry, "bad", 200).await;
    let failed = pull(&mac, &bad, json!({"command": "echo no good; exit 4"})).await;
    assert_eq!((&failed["state"], &failed["error"]["code"]), (&json!("failed"), &json!("template.canary_failed")));
    assert!(failed["error"]["detail"].as_str().unwrap().contains("exit code 4"), "{failed:#}");
    assert!(serve.log_of(failed["vm_id"].as_str().unwrap(), "job").await.contains("no good"));
    assert_ne!(failed["digest"], passed["digest"]);
    assert_eq!(serve.get("/templates/mac").await["digest"], passed["digest"]);
    mac.assert_nothing_left().await;
}
