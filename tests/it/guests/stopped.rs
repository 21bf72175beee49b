//! Guests that QEMU stopped while it lives on: the attempt ends at once, with its cause, and nothing is left.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::qmp;
use crate::support::{
    Serve,
    small_disk::{self, small_disk},
};

/// From the stop to the end of the attempt. A lost event is made up for within five seconds.
const SOON: Duration = Duration::from_secs(8);

fn socket(serve: &Serve, id: &str) -> PathBuf {
    let instances = serve.dir.join("instances");
    let of_vm = |name: &str| name.replace('-', "").starts_with(&format!("mayfly{}", id.replace('-', "")));
    let dir =
        std::fs::read_dir(&instances).unwrap().map(|e| e.unwrap()).find(|e| of_vm(e.file_name().to_str().unwrap()));
    dir.expect("the vm has an instance").path().join("qmp.sock")
}

/// Since a vm entered a state, as its record says.
fn entered(vm: &Value, state: &str) -> jiff::Timestamp {
    let entry = vm["timeline"].as_array().unwrap().iter().rfind(|e| e["state"] == state).expect(state);
    entry["at"].as_str().unwrap().parse().unwrap()
}

async fn running(serve: &Serve, runner: Value) -> String {
    let vm = serve.create(json!({"template": "micro", "runner": runner})).await;
    let id = vm["id"].as_str().unwrap().to_owned();
    serve.wait_state(&id, "running").await;
    id
}

async fn lost(serve: &Serve, id: &str, since: jiff::Timestamp, code: &str) -> Value {
    let end = serve.wait_state(id, "deleted").await;
    let took = entered(&end, "stopping").duration_since(since);
    eprintln!("{code}: {:.3} s from the stop to the end of the attempt", took.as_secs_f64());
    assert!(took.as_secs_f64() < SOON.as_secs_f64(), "{took:#}: {end:#}");
    assert_eq!(
        (&end["outcome"]["result"], &end["outcome"]["code"], &end["end_signal"]),
        (&json!("lost"), &json!(code), &json!("instance_gone")),
        "{end:#}"
    );
    end
}

/// Another program on the host pauses a guest: while the service looks, and while it is away.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_by_another_program_ends_the_vm_at_once() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let sleeps = json!({"kind": "command", "command": "sleep 600"});
    let (seen, unseen) = tokio::join!(running(&serve, sleeps.clone()), running(&serve, sleeps));
    let since = jiff::Timestamp::now();
    qmp(&socket(&serve, &seen), "stop").await.unwrap();
    let end = lost(&serve, &seen, since, "instance.paused").await;
    assert_eq!(end["outcome"]["detail"], "the guest was paused by another program on this host");

    let socket = socket(&serve, &unseen);
    serve.stop();
    qmp(&socket, "stop").await.unwrap();
    let since = jiff::Timestamp::now();
    serve.spawn().await;
    lost(&serve, &unseen, since, "instance.paused").await;
    serve.assert_nothing_left().await;
}

/// A guest that is stopped before it has its runner is replaced; the next attempt runs the job.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_paused_while_it_boots_is_replaced_at_once() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "command", "command": "true"}})).await;
    let id = vm["id"].as_str().unwrap();
    serve.wait_state(id, "booting").await;
    let patience = Instant::now() + Duration::from_secs(30);
    let boots = async || {
        !serve.hypervisors().is_empty()
            && qmp(&socket(&serve, id), "query-status").await.is_ok_and(|status| status.contains("\"running\": true"))
    };
    while !boots().await {
        assert!(Instant::now() < patience, "no guest boots: {}", serve.log());
        tokio::task::yield_now().await;
    }
    qmp(&socket(&serve, id), "stop").await.unwrap();
    let since = jiff::Timestamp::now();
    let failed = serve.wait(id, "the attempt failed", |vm| !vm["last_fault"].is_null()).await;
    let took = entered(&failed, "stopping").duration_since(since);
    assert!(took.as_secs_f64() < SOON.as_secs_f64(), "{took:#}: {failed:#}");
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!((&end["outcome"]["result"], &end["attempt"]), (&json!("completed"), &json!(2)), "{end:#}");
    serve.assert_nothing_left().await;
}

fn on_small_disk(disk: &Path) -> impl FnOnce(&Path) -> Vec<(String, String)> {
    let instances = disk.join("i");
    move |data| {
        std::fs::create_dir(&instances).unwrap();
        std::os::unix::fs::symlink(&instances, data.join("instances")).unwrap();
        vec![("MAYFLY_DRIVERS__QEMU__DISK_FULL_SECONDS".to_owned(), "6".to_owned())]
    }
}

/// The file system under the guests' disks is full, for real: a guest with a job is paused, goes on when there is room, and is
/// given up when there is none for long.
#[test]
fn a_full_disk_pauses_a_guest_until_there_is_room() {
    let Some(disk) = small_disk(module_path!(), "a_full_disk_pauses_a_guest_until_there_is_room", 256) else { return };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let serve = Serve::prepared(on_small_disk(&disk)).await;
        serve.template("micro", "seed", json!({})).await;
        let command = "dd if=/dev/zero of=$HOME/big bs=1M count=24; sync; echo written; exit 5";
        let id = running(&serve, json!({"kind": "command", "command": format!("sleep 2; {command}")})).await;
        small_disk::fill(&disk, 256);
        let paused = serve.wait(&id, "it is paused", |vm| vm["last_fault"]["code"] == "host.full").await;
        assert_eq!(paused["state"], "running", "{paused:#}");
        small_disk::empty(&disk);
        let end = serve.wait_state(&id, "deleted").await;
        assert_eq!((&end["outcome"]["result"], &end["job"]["exit_code"]), (&json!("completed"), &json!(5)), "{end:#}");
        let log = serve.log_of(&id, "hypervisor").await;
        assert!(log.contains("the guest is paused") && log.contains("the guest goes on"), "{log}");

        let id = running(&serve, json!({"kind": "command", "command": format!("sleep 2; {command}")})).await;
        small_disk::fill(&disk, 256);
        serve.wait(&id, "it is paused", |vm| vm["last_fault"]["code"] == "host.full").await;
        let since = jiff::Timestamp::now();
        let end = serve.wait_state(&id, "deleted").await;
        let took = entered(&end, "stopping").duration_since(since).as_secs_f64();
        assert!((3.0..20.0).contains(&took), "{took}: {end:#}");
        assert_eq!(
            (&end["outcome"]["result"], &end["outcome"]["code"]),
            (&json!("lost"), &json!("host.full")),
            "{end:#}"
        );
        small_disk::empty(&disk);
        serve.assert_nothing_left().await;
    });
}

/// What the guest's driver of QEMU's panic device does in a panic: tells the device, whose default is to end the guest.
#[cfg(target_arch = "x86_64")]
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_panics_ends_its_vm_at_once() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "ssh", json!({})).await;
    let id = running(&serve, json!({"kind": "command", "command": "sleep 600"})).await;
    let vm = serve.get(&format!("/vms/{id}")).await;
    let port = crate::support::forwarded(vm["ssh"]["socket"].as_str().unwrap().into()).to_string();
    let panic = "d=$(grep -l 0x0011 /sys/bus/pci/devices/*/device); d=${d%/device}; echo 1 > $d/enable; \
                 devmem $(cut -d ' ' -f 1 $d/resource | head -n 1) 8 1";
    let since = jiff::Timestamp::now();
    let ssh = tokio::process::Command::new("ssh")
        .args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"])
        .args(["-o", "LogLevel=ERROR", "-F", "none", "-p", &port, "-i"])
        .arg(crate::support::image().join("id_ed25519"))
        .args(["root@127.0.0.1", panic])
        .stdin(std::process::Stdio::null())
        .output();
    let said = ssh.await.expect("an ssh client");
    eprintln!("{}", String::from_utf8_lossy(&said.stderr));
    lost(&serve, &id, since, "guest.panicked").await;
    serve.assert_nothing_left().await;
}
