//! The way of a Mac, end to end: the real service, the tart driver, the double of `tart` around real guests that play macOS.

use serde_json::{Value, json};

use super::{WHOLE_LIFE, states};
use crate::support::tart::Mac;

fn job(template: &str) -> Value {
    json!({"template": template, "runner": {"kind": "command", "command": "echo \"ran on $(uname -s)\"; exit 3"}})
}

fn entered(vm: &Value, state: &str) -> jiff::Timestamp {
    let entry = vm["timeline"].as_array().unwrap().iter().find(|e| e["state"] == state).unwrap();
    entry["at"].as_str().unwrap().parse().unwrap()
}

/// Two at once, by SSH and by the guest agent; the third waits for a slot. Each is deleted because its own hook said so.
#[tokio::test(flavor = "multi_thread")]
async fn two_macs_at_once_and_the_third_waits() {
    let mac = Mac::start("darwin").await;
    mac.template("by-agent", "agent", json!({})).await;
    mac.template("by-ssh", "ssh", json!({})).await;
    let serve = &mac.serve;
    let mut ids = Vec::new();
    for template in ["by-agent", "by-ssh", "by-agent"] {
        let vm = serve.create(job(template)).await;
        assert_eq!(vm["os"], "macos", "{vm:#}");
        ids.push(vm["id"].as_str().unwrap().to_owned());
    }
    let waits = |vm: &Value| vm["queue"]["reason"] == "slot" && vm["queue"]["position"] == 1;
    // That others leave the queue is no news of the one that waits.
    for id in &ids[..2] {
        serve.wait(id, "it has a slot", |vm| vm["state"] != "queued").await;
    }
    serve.wait(&ids[2], "it waits for a slot", waits).await;
    let mut held = Vec::new();
    for id in &ids {
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!(states(&end), WHOLE_LIFE, "{end:#}");
        assert_eq!((&end["announced_by"], &end["end_signal"]), (&json!("hook"), &json!("runner_finished")), "{end:#}");
        assert_eq!((&end["attempt"], &end["job"]["exit_code"]), (&json!(1), &json!(3)), "{end:#}");
        assert!(serve.log_of(id, "job").await.contains("ran on"));
        assert!(!serve.log_of(id, "boot").await.is_empty());
        held.push((entered(&end, "cloning"), entered(&end, "deleted")));
    }
    assert!(held[1].0 < held[0].1, "the first two shared the host: {held:?}");
    assert!(held[2].0 >= held[0].1.min(held[1].1), "the third had to wait for one of them: {held:?}");
    mac.assert_nothing_left().await;
}

/// The kernel has lost a slot: one guest runs, the other waits for the host, which says why, and goes on when the slot is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_leaked_kernel_slot_is_the_hosts_fault() {
    let mut mac = Mac::start("darwin").await;
    mac.set("foreign_kernel_slots", json!(1));
    mac.template("mac", "agent", json!({})).await;
    let serve = &mac.serve;
    let runs = serve.create(json!({"template": "mac", "runner": {"kind": "none"}})).await;
    let runs = runs["id"].as_str().unwrap();
    serve.wait_state(runs, "running").await;
    let waits = serve.create(job("mac")).await;
    let waits = waits["id"].as_str().unwrap().to_owned();
    let vm = serve.wait(&waits, "it waits for the host", |vm| vm["queue"]["reason"] == "host").await;
    assert_eq!(vm["last_fault"]["code"], "host.limit_exceeded", "{vm:#}");
    let host = serve.get("/host").await;
    let fault = &host["faults"][0];
    assert_eq!((&fault["os"], &fault["admits"], &fault["slots"]), (&json!("macos"), &json!(1), &json!(2)), "{host:#}");
    assert!(fault["remedy"].as_str().is_some_and(|r| r.contains("reboot")), "{host:#}");
    assert!(fault["age_seconds"].is_u64());

    mac.set("foreign_kernel_slots", json!(0));
    let serve = &mac.serve;
    let end = serve.wait_state(&waits, "deleted").await;
    assert_eq!(end["outcome"]["result"], "completed", "{end:#}");
    assert_eq!(serve.get("/host").await["faults"], json!([]));
    assert_eq!(serve.delete(&format!("/vms/{runs}?force=true")).await.0, 202);
    serve.wait_state(runs, "deleted").await;
    mac.assert_nothing_left().await;
}
