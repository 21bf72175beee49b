//! The way of a Mac, end to end: the real service, the tart driver, the double of `tart` around real guests that play macOS.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{WHOLE_LIFE, states};
use crate::support::{
    dice::Dice,
    tart::{Foreign, Mac},
};

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

/// A Mac whose guests do nothing at all, so that many can be had.
async fn inert(settings: &[(&str, &str)]) -> Mac {
    let mut mac = Mac::with("darwin", settings).await;
    mac.set("guest", json!("inert"));
    // The kernel of this Mac would run as many as one likes: what is counted here is Mayfly's own restraint.
    mac.set("limit", json!(20));
    mac.template("mac", "agent", json!({})).await;
    mac
}

async fn now(mac: &Mac) -> (u16, Value) {
    mac.serve.post("/vms", json!({"template": "mac", "queue_timeout_seconds": 0})).await
}

/// Waits until the VM's `tart run` holds its slot.
async fn runs(mac: &Mac, id: &str) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let host = mac.serve.get("/host").await;
        let instances = host["instances"].as_array().unwrap();
        if instances.iter().any(|i| i["vm_id"] == *id && i["running"] == true) {
            return;
        }
        assert!(Instant::now() < end, "{id} does not run: {host:#}\n{}", mac.serve.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn end(mac: &Mac, id: &str) {
    assert!(matches!(mac.serve.delete(&format!("/vms/{id}?force=true")).await.0, 200 | 202));
    mac.serve.wait_state(id, "deleted").await;
}

/// Two macOS guests per host, whoever started them: after each step of a script, a request that does not wait is granted if and
/// only if fewer run.
#[tokio::test(flavor = "multi_thread")]
async fn people_and_mayfly_share_two_slots() {
    let mac = inert(&[]).await;
    for seed in 1..=2u64 {
        let mut dice = Dice::new(seed);
        let mut foreign: [Foreign; 2] = ["xcode", "other build"].map(|name| mac.foreign(name));
        let mut ours: Vec<String> = Vec::new();
        let mut slowest = Duration::ZERO;
        for step in 0..12 {
            let running = foreign.iter().filter(|f| f.runs()).count() + ours.len();
            let one = &mut foreign[dice.roll(2) as usize];
            match dice.roll(4) {
                0 if !one.runs() && running < 2 => one.run(),
                1 if one.runs() => one.end(),
                2 if !ours.is_empty() => end(&mac, &ours.swap_remove(dice.roll(ours.len() as u64) as usize)).await,
                _ => {}
            }
            let running = foreign.iter().filter(|f| f.runs()).count() + ours.len();
            let began = Instant::now();
            let (status, answer) = now(&mac).await;
            slowest = slowest.max(began.elapsed());
            let expected = if running < 2 { 201 } else { 409 };
            assert_eq!(status, expected, "seed {seed}, step {step}: {running} run; {answer:#}");
            if status == 201 {
                let id = answer["id"].as_str().unwrap().to_owned();
                runs(&mac, &id).await;
                ours.push(id);
            }
            let host = mac.serve.get("/host").await;
            let counted = host["instances"].as_array().unwrap().iter().filter(|i| i["running"] == true).count();
            assert!(counted <= 2, "seed {seed}, step {step}: {host:#}");
            assert_eq!(host["slots"]["macos"]["free"], 2 - counted, "{host:#}");
        }
        assert!(slowest < Duration::from_secs(3), "seed {seed}: the slowest answer took {slowest:?}");
        for id in ours {
            end(&mac, &id).await;
        }
    }
    for name in ["xcode", "other build"] {
        std::fs::remove_dir_all(mac.serve.dir.join("home/vms").join(name)).unwrap();
    }
    mac.assert_nothing_left().await;
}

/// A human starts a guest while ours is being cloned: it is found, ours goes back to the queue and runs when the human is done.
#[tokio::test(flavor = "multi_thread")]
async fn a_human_is_faster_than_our_clone() {
    let mut mac = inert(&[("MAYFLY_SLOTS__MACOS", "1")]).await;
    let mut foreign = mac.foreign("xcode");
    // A look that began before would count as the first list.
    mac.serve.get("/reconcile").await;
    // The first list is for the answer, the second one comes right before the start.
    mac.set("rules", json!([{"command": "list", "skip": 1, "times": 1, "then": {"hang_ms": 5000}}]));
    let (status, vm) = now(&mac).await;
    assert_eq!(status, 201, "{vm:#}");
    let id = vm["id"].as_str().unwrap();
    foreign.run();
    let vm = mac.serve.wait(id, "it goes back", |vm| vm["state"] == "queued" && vm["attempt"] == 1).await;
    assert_eq!((&vm["queue"]["reason"], &vm["last_fault"]["code"]), (&json!("slot"), &json!("slot.taken")), "{vm:#}");
    let started = std::fs::read_dir(mac.serve.dir.join("home/double/slots")).unwrap().count();
    assert_eq!(started, 1, "only the human's guest ever had a slot of the kernel's");
    foreign.end();
    runs(&mac, id).await;
    end(&mac, id).await;
    std::fs::remove_dir_all(mac.serve.dir.join("home/vms/xcode")).unwrap();
    mac.assert_nothing_left().await;
}
