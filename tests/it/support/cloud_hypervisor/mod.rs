//! A host with Cloud Hypervisor, as far as Mayfly can tell: its double, whose guests are real.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Serve, image};

mod traces;

pub use traces::Traces;

pub fn double() -> PathBuf {
    let profile = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
    let double = profile.join("examples/cloud-hypervisor-double");
    assert!(double.exists(), "there is no {}: `cargo build --example cloud-hypervisor-double`", double.display());
    double
}

/// A service whose only driver is `cloud-hypervisor`.
pub async fn serve() -> Serve {
    Serve::prepared(|dir| {
        let binary = dir.join("bin/cloud-hypervisor");
        std::fs::create_dir(dir.join("bin")).unwrap();
        std::os::unix::fs::symlink(double(), &binary).unwrap();
        [
            ("MAYFLY_DRIVERS__QEMU__ENABLED", "false".to_owned()),
            ("MAYFLY_DRIVERS__CLOUD_HYPERVISOR__ENABLED", "true".to_owned()),
            ("MAYFLY_DRIVERS__CLOUD_HYPERVISOR__BINARY", binary.display().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .to_vec()
    })
    .await
}

pub async fn template(serve: &Serve, name: &str, handover: &str) {
    let image = image();
    let at = |file: &str| image.join(file).to_str().unwrap().to_owned();
    let description: Value =
        serde_json::from_str(&std::fs::read_to_string(image.join("template.json")).unwrap()).unwrap();
    let body = json!({
        "name": name, "driver": "cloud-hypervisor", "os": "linux", "disk": at("disk.qcow2"), "kernel": at("vmlinuz"),
        "initramfs": at("initramfs.img"), "cmdline": description["cmdline"], "cpus": 1, "memory_mib": 192,
        "handover": handover, "user": "runner", "ssh_key": at("id_ed25519"),
    });
    let (status, template) = serve.post("/templates", body).await;
    assert_eq!((status, &template["driver"]), (201, &json!("cloud-hypervisor")), "{template}");
}

/// No vm, no process, no directory.
pub async fn assert_nothing_left(serve: &Serve) {
    serve.assert_nothing_left().await;
    let left: Vec<_> = std::fs::read_dir(serve.dir.join("cloud-hypervisor"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert!(left.is_empty(), "instances are left: {left:?}");
    let needle = format!("{}/cloud-hypervisor/mayfly-", serve.dir.display());
    let processes: Vec<String> = std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&needle))
        .collect();
    assert!(processes.is_empty(), "processes are left: {processes:#?}");
}
