//! Kill -9 at every transition, start again: every accepted vm comes to the same end and nothing is left over.

use std::{collections::BTreeSet, path::Path, time::Duration};

use serde_json::json;
use sqlx::{ConnectOptions, Connection};

use crate::support::{Serve, macosvm::MacosvmHost, tart::Mac};

/// The states that the vm has been in, read straight from the database file: the service is about to be killed.
async fn reached(db: &mut sqlx::SqliteConnection, kind: &str) -> bool {
    let n: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM events WHERE json_extract(event, '$.type') = ?")
        .bind(kind)
        .fetch_one(db)
        .await
        .unwrap();
    n > 0
}

async fn reader(dir: &Path) -> sqlx::SqliteConnection {
    sqlx::sqlite::SqliteConnectOptions::new()
        .filename(dir.join("mayfly.db"))
        .read_only(true)
        .busy_timeout(Duration::from_secs(5))
        .connect()
        .await
        .unwrap()
}

/// One life for each event of a life, the service killed as soon as that event is on disk.
async fn die_after(kind: &str, handover: &str) {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", handover, json!({})).await;
    live_through(&mut serve, kind).await;
    serve.assert_nothing_left().await;
}

/// The same with the tart driver: its guests are in sessions of their own and are adopted by the record lock that Tart holds.
async fn die_on_a_mac_after(kind: &str, handover: &str) {
    let mut mac = Mac::start("darwin").await;
    mac.template("micro", handover, json!({})).await;
    live_through(&mut mac.serve, kind).await;
    mac.assert_nothing_left().await;
}

/// The same with Cloud Hypervisor: supervisor, hypervisor and gateway outlive the service, and are adopted. In the end they are gone, and
/// with them the namespaces and the tap.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
async fn die_on_cloud_hypervisor_after(kind: &str, handover: &str) {
    use crate::support::cloud_hypervisor;

    let mut serve = cloud_hypervisor::serve().await;
    cloud_hypervisor::template(&serve, "micro", handover).await;
    let traces = cloud_hypervisor::Traces::watch(&serve.dir.join("cloud-hypervisor"));
    live_through(&mut serve, kind).await;
    cloud_hypervisor::assert_nothing_left(&serve).await;
    traces.assert_gone();
}

/// The same with the macosvm driver, at each state: its guests are adopted by the recorded process.
async fn die_with_macosvm_after(kind: &str, _handover: &str) {
    let mut host = MacosvmHost::start().await;
    host.template("micro", json!({})).await;
    live_through(&mut host.serve, kind).await;
    host.assert_nothing_left().await;
}

async fn live_through(serve: &mut Serve, kind: &str) {
    let vm = serve
        .create(json!({"template": "micro", "runner": {"kind": "command", "command": "echo once >> /tmp/runs; cat /tmp/runs; sleep 1"}}))
        .await;
    let id = vm["id"].as_str().unwrap();
    let mut db = reader(&serve.dir).await;
    let end = std::time::Instant::now() + Duration::from_secs(60);
    while !reached(&mut db, kind).await {
        assert!(std::time::Instant::now() < end, "{kind} never happened\n{}", serve.log());
        // The database has no way to call us; a millisecond is the width of the gap that is killed into.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    serve.kill();
    db.close().await.unwrap();
    serve.spawn().await;
    let end = serve.wait(id, "deleted", |vm| vm["state"] == "deleted").await;
    assert_eq!(end["outcome"]["result"], "completed", "killed after {kind}: {end:#}");
    assert_eq!(end["job"]["exit_code"], 0, "killed after {kind}: {end:#}");
    assert_eq!(end["attempt"], 1, "killed after {kind}: {end:#}");
    assert_eq!(serve.log_of(id, "job").await.matches("once").count(), 1, "the job ran once, killed after {kind}");
}

/// Every event of an ordinary life. What is missing here is found by the last test.
const LIFE: [&str; 13] = [
    "created",
    "slot_taken",
    "cloned",
    "endpoint_found",
    "guest_ready",
    "guest_described",
    "guest_configured",
    "runner_changed",
    "end_announced",
    "job_finished",
    "end_proven",
    "instance_stopped",
    "instance_absent",
];

macro_rules! kill_points {
    ($die:ident: $($name:ident $kind:literal $handover:literal)+) => { $(
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() { $die($kind, $handover).await; }
    )+ };
}

kill_points! { die_on_a_mac_after:
    on_a_mac_after_created "created" "agent"
    on_a_mac_after_slot_taken "slot_taken" "agent"
    on_a_mac_after_cloned "cloned" "ssh"
    on_a_mac_after_endpoint_found "endpoint_found" "ssh"
    on_a_mac_after_guest_ready "guest_ready" "agent"
    on_a_mac_after_guest_described "guest_described" "ssh"
    on_a_mac_after_guest_configured "guest_configured" "agent"
    on_a_mac_after_runner_changed "runner_changed" "ssh"
    on_a_mac_after_end_announced "end_announced" "agent"
    on_a_mac_after_job_finished "job_finished" "agent"
    on_a_mac_after_end_proven "end_proven" "ssh"
    on_a_mac_after_instance_stopped "instance_stopped" "agent"
    on_a_mac_after_instance_absent "instance_absent" "agent"
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
kill_points! { die_on_cloud_hypervisor_after:
    on_cloud_hypervisor_after_created "created" "ssh"
    on_cloud_hypervisor_after_slot_taken "slot_taken" "seed"
    on_cloud_hypervisor_after_cloned "cloned" "seed"
    on_cloud_hypervisor_after_endpoint_found "endpoint_found" "seed"
    on_cloud_hypervisor_after_guest_ready "guest_ready" "ssh"
    on_cloud_hypervisor_after_guest_described "guest_described" "ssh"
    on_cloud_hypervisor_after_guest_configured "guest_configured" "seed"
    on_cloud_hypervisor_after_runner_changed "runner_changed" "seed"
    on_cloud_hypervisor_after_end_announced "end_announced" "ssh"
    on_cloud_hypervisor_after_job_finished "job_finished" "seed"
    on_cloud_hypervisor_after_end_proven "end_proven" "seed"
    on_cloud_hypervisor_after_instance_stopped "instance_stopped" "seed"
    on_cloud_hypervisor_after_instance_absent "instance_absent" "seed"
}

kill_points! { die_with_macosvm_after:
    with_macosvm_in_queued "created" "ssh"
    with_macosvm_in_cloning "slot_taken" "ssh"
    with_macosvm_in_booting "cloned" "ssh"
    with_macosvm_in_configuring "guest_ready" "ssh"
    with_macosvm_in_running "guest_configured" "ssh"
    with_macosvm_in_draining "end_announced" "ssh"
    with_macosvm_in_stopping "end_proven" "ssh"
    with_macosvm_in_deleting "instance_stopped" "ssh"
}

kill_points! { die_after:
    after_created "created" "seed"
    after_slot_taken "slot_taken" "ssh"
    after_cloned "cloned" "seed"
    after_endpoint_found "endpoint_found" "ssh"
    after_guest_ready "guest_ready" "ssh"
    after_guest_described "guest_described" "seed"
    after_guest_configured "guest_configured" "seed"
    after_runner_changed "runner_changed" "ssh"
    after_end_announced "end_announced" "seed"
    after_job_finished "job_finished" "seed"
    after_end_proven "end_proven" "ssh"
    after_instance_stopped "instance_stopped" "seed"
    after_instance_absent "instance_absent" "seed"
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_points_are_all_there_are() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "ssh", json!({})).await;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "command", "command": "true"}})).await;
    let id = vm["id"].as_str().unwrap();
    serve.wait_state(id, "deleted").await;
    let events = serve.get(&format!("/vms/{id}/events")).await;
    let seen: BTreeSet<_> =
        events["items"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap().to_owned()).collect();
    let known: BTreeSet<_> = LIFE.iter().map(|k| (*k).to_owned()).collect();
    assert!(seen.is_subset(&known), "events without a kill point: {:?}", seen.difference(&known));
    serve.assert_nothing_left().await;
}
