//! A service that cannot look does not take what it cannot see for gone.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use mayfly::drivers::qemu::probe;
use serde_json::{Value, json};

use crate::support::{Serve, image};

/// `cli; hlt`, for ever: a guest that costs nothing and never answers.
const DEAF: &[u8] = &[0xfa, 0xf4, 0xeb, 0xfd];
const GUESTS: usize = 10;
const WITHIN: Duration = Duration::from_secs(60);

fn directories(serve: &Serve) -> BTreeSet<String> {
    let entries = std::fs::read_dir(serve.dir.join("instances")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn hypervisors(serve: &Serve) -> BTreeSet<i32> {
    serve.hypervisors().into_iter().collect()
}

fn descriptors(serve: &Serve) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", serve.pid())).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_free_descriptors_no_guest_is_given_up() {
    let mut serve = Serve::start(&[("MAYFLY_SLOTS__LINUX", "10"), ("MAYFLY_SLOTS__CPUS", "64")]).await;
    let idle = descriptors(&serve);
    let disk = serve.dir.join("deaf.img");
    std::fs::write(&disk, probe::boot_disk(DEAF)).unwrap();
    let template = json!({
        "name": "deaf", "os": "linux", "disk": disk, "cpus": 1, "memory_mib": 64, "handover": "ssh", "user": "runner",
        "ssh_key": image().join("id_ed25519"), "budgets": {"boot_seconds": 3000},
    });
    let (status, body) = serve.post("/templates", template).await;
    assert_eq!(status, 201, "{body}");
    let mut ids = Vec::new();
    for _ in 0..GUESTS {
        let vm = serve.create(json!({"template": "deaf", "runner": {"kind": "none"}})).await;
        ids.push(vm["id"].as_str().unwrap().to_owned());
    }
    for id in &ids {
        serve.wait(id, "its guest runs", |vm| vm["state"] == "booting" && !vm["ssh"].is_null()).await;
    }
    let (running, kept) = (hypervisors(&serve), directories(&serve));
    assert_eq!((running.len(), kept.len()), (GUESTS, GUESTS));

    serve.kill();
    // Enough to start and to take up some of them.
    serve.spawn_with_descriptors(idle + 4).await;
    let began = Instant::now();
    let failed = |serve: &Serve| serve.log().matches("Too many open files").count();
    while failed(&serve) < 2 * GUESTS && began.elapsed() < WITHIN {
        assert_eq!(
            hypervisors(&serve),
            running,
            "none was ended, and none was started beside another\n{}",
            serve.log()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(failed(&serve) > 0, "the limit was met\n{}", serve.log());
    assert_eq!((hypervisors(&serve), directories(&serve)), (running.clone(), kept.clone()), "{}", serve.log());

    serve.kill();
    serve.spawn().await;
    let is_untouched = |vm: &Value| vm["state"] == "booting" && vm["attempt"] == 1 && vm["outcome"].is_null();
    for id in &ids {
        let vm = serve.get(&format!("/vms/{id}")).await;
        assert!(is_untouched(&vm), "{vm:#}\n{}", serve.log());
    }
    assert_eq!((hypervisors(&serve), directories(&serve)), (running, kept));
    for id in &ids {
        assert_eq!(serve.delete(&format!("/vms/{id}?force=true")).await.0, 202);
    }
    for id in &ids {
        serve.wait_state(id, "deleted").await;
    }
    serve.assert_nothing_left().await;
}
