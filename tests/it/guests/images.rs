//! A template pushed by one host, and a vm of it on another host that has never heard of it: asked for by its image alone.

use serde_json::json;

use super::{WHOLE_LIFE, states};
use crate::support::{Serve, registry::Registry};

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_runs_from_an_image_that_another_host_pushed() {
    let registry = Registry::open().await;
    let ca_file = registry.authority.file().display().to_string();
    let settings = [("MAYFLY_REGISTRY__CA_FILE", ca_file.as_str())];
    let reference = format!("{}/ci/micro:1", registry.address);

    let there = Serve::start(&settings).await;
    there.template("micro", "seed", json!({})).await;
    let (status, pushed) = there.post("/templates/micro/push", json!({"image": reference})).await;
    assert_eq!(status, 200, "{pushed:#}");

    let here = Serve::start(&settings).await;
    let vm = here
        .create(json!({"template": reference, "runner": {"kind": "command", "command": "echo \"ran on $(uname -s)\"; exit 3"}}))
        .await;
    assert_eq!((&vm["queue"]["reason"], vm["os"].is_null()), (&json!("template"), true), "{vm:#}");
    let id = vm["id"].as_str().unwrap();
    let end = here.wait_state(id, "deleted").await;
    assert_eq!(states(&end), WHOLE_LIFE, "{end:#}");
    assert_eq!((&end["end_signal"], &end["job"]["exit_code"]), (&json!("runner_finished"), &json!(3)), "{end:#}");
    assert_eq!((&end["driver"], &end["memory_mib"]), (&json!("qemu"), &json!(192)), "{end:#}");
    assert!(here.log_of(id, "job").await.contains("ran on Linux"));

    // The next one finds it by its digest, and waits for nothing but a slot.
    let pinned = format!("{}/ci/micro@{}", registry.address, pushed["digest"].as_str().unwrap());
    let vm = here.create(json!({"template": pinned, "runner": {"kind": "none"}})).await;
    assert_eq!(vm["template_digest"], end["template_digest"], "{vm:#}");
    let id = vm["id"].as_str().unwrap();
    here.delete(&format!("/vms/{id}?force=true")).await;
    here.wait_state(id, "deleted").await;
    here.assert_nothing_left().await;
}
