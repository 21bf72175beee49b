//! Whole lives with the macosvm driver: the real service, the double of `macosvm` around real guests that play macOS.

use serde_json::{Value, json};

use super::{WHOLE_LIFE, states};
use crate::support::{Serve, macosvm::MacosvmHost};

fn entered(vm: &Value, state: &str) -> jiff::Timestamp {
    let entry = vm["timeline"].as_array().unwrap().iter().find(|e| e["state"] == state).unwrap();
    entry["at"].as_str().unwrap().parse().unwrap()
}

/// Two at once, and the third waits for a slot. Each is deleted because its own hook said so.
#[tokio::test(flavor = "multi_thread")]
async fn two_guests_of_macosvm_at_once_and_the_third_waits() {
    let host = MacosvmHost::start().await;
    host.template("mac", json!({})).await;
    let serve = &host.serve;
    let job =
        json!({"template": "mac", "runner": {"kind": "command", "command": "echo \"ran on $(uname -s)\"; exit 3"}});
    let mut ids = Vec::new();
    for _ in 0..3 {
        let vm = serve.create(job.clone()).await;
        assert_eq!(vm["os"], "macos", "{vm:#}");
        ids.push(vm["id"].as_str().unwrap().to_owned());
    }
    // That others leave the queue is no news of the one that waits.
    for id in &ids[..2] {
        serve.wait(id, "it has a slot", |vm| vm["state"] != "queued").await;
    }
    let waits = |vm: &Value| vm["queue"]["reason"] == "slot" && vm["queue"]["position"] == 1;
    serve.wait(&ids[2], "it waits for a slot", waits).await;
    let mut held = Vec::new();
    for id in &ids {
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!(states(&end), WHOLE_LIFE, "{end:#}");
        assert_eq!((&end["announced_by"], &end["end_signal"]), (&json!("hook"), &json!("runner_finished")), "{end:#}");
        assert_eq!((&end["attempt"], &end["job"]["exit_code"]), (&json!(1), &json!(3)), "{end:#}");
        assert!(serve.log_of(id, "job").await.contains("ran on"));
        held.push((entered(&end, "cloning"), entered(&end, "deleted")));
    }
    assert!(held[1].0 < held[0].1, "the first two shared the host: {held:?}");
    assert!(held[2].0 >= held[0].1.min(held[1].1), "the third had to wait for one of them: {held:?}");
    host.assert_nothing_left().await;
}

/// The hypervisor cannot ask its guest to power down, so Mayfly asks the guest itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_time_is_up_powers_itself_down() {
    let host = MacosvmHost::start().await;
    let budgets = json!({"lifetime_seconds": 25, "stop_grace_seconds": 60});
    host.template_of("mac", "root", budgets.clone()).await;
    let serve = &host.serve;
    let (end, log) = life_until_its_budget_is_spent(serve, "mac").await;
    assert!(log.contains("guest stopped"), "{log}\n{end:#}");

    // Without the permission, the guest is not asked, and nothing waits for it.
    host.template_of("unprivileged", "runner", budgets).await;
    let (end, log) = life_until_its_budget_is_spent(serve, "unprivileged").await;
    assert!(!log.contains("guest stopped"), "{log}\n{end:#}");
    let stopping = entered(&end, "deleting").duration_since(entered(&end, "stopping"));
    assert!(stopping.as_secs() < 40, "the whole grace was spent: {end:#}");
    assert!(serve.log().contains("the user may not power the guest off"), "{}", serve.log());
    host.assert_nothing_left().await;
}

/// The vm, and what its hypervisor wrote.
async fn life_until_its_budget_is_spent(serve: &Serve, template: &str) -> (Value, String) {
    let vm = serve.create(json!({"template": template, "runner": {"kind": "none"}})).await;
    let id = vm["id"].as_str().unwrap();
    serve.wait_state(id, "running").await;
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!(end["end_signal"], "lifetime_budget", "{end:#}");
    let log = serve.log_of(id, "hypervisor").await;
    assert!(log.contains("start completed err=nil"), "{log}");
    (end, log)
}
