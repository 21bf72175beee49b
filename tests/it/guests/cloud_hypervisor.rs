//! Whole lives over the double of Cloud Hypervisor, with real guests behind its tap.

use serde_json::{Value, json};

use super::{WHOLE_LIFE, states};
use crate::support::{
    cloud_hypervisor::{assert_nothing_left, serve, template},
    image,
};

/// Two at once, provisioned by their seed and over SSH; the third waits for a slot.
#[tokio::test(flavor = "multi_thread")]
async fn two_at_once_and_the_third_waits() {
    let serve = serve().await;
    template(&serve, "by-seed", "seed").await;
    template(&serve, "by-ssh", "ssh").await;
    let job =
        |template: &str| json!({"template": template, "runner": {"kind": "command", "command": "id -un; exit 7"}});
    let mut ids = Vec::new();
    for template in ["by-seed", "by-ssh", "by-seed"] {
        ids.push(serve.create(job(template)).await["id"].as_str().unwrap().to_owned());
    }
    for id in &ids[..2] {
        serve.wait(id, "it has a slot", |vm| vm["state"] != "queued").await;
    }
    let waits = |vm: &Value| vm["queue"]["reason"] == "slot" && vm["queue"]["position"] == 1;
    serve.wait(&ids[2], "it waits for a slot", waits).await;
    for id in &ids {
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!(states(&end), WHOLE_LIFE, "{end:#}");
        assert_eq!((&end["attempt"], &end["job"]["exit_code"]), (&json!(1), &json!(7)), "{end:#}");
        assert_eq!((&end["announced_by"], &end["end_signal"]), (&json!("hook"), &json!("runner_finished")), "{end:#}");
        assert!(serve.log_of(id, "job").await.contains("runner"));
    }
    assert_nothing_left(&serve).await;
}

/// A guest is isolated by the same gateway as that of QEMU's guests: it reaches the guest API, and nothing of the host.
#[tokio::test(flavor = "multi_thread")]
async fn an_isolated_guest_reaches_the_guest_api_only() {
    let serve = serve().await;
    template(&serve, "micro", "seed").await;
    let listener = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), b"reached\n");
        }
    });
    let command =
        format!("ip -4 addr | grep -o 10.0.2.15; curl -s -m 5 telnet://10.0.2.2:{port} </dev/null; echo done");
    for (network, reached) in [("isolated", false), ("host", true)] {
        let vm = serve
            .create(json!({
                "template": "micro", "network": network, "runner": {"kind": "command", "command": command},
            }))
            .await;
        let id = vm["id"].as_str().unwrap();
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!(end["outcome"]["result"], "completed", "{end:#}");
        let job = serve.log_of(id, "job").await;
        assert!(job.contains("10.0.2.15") && job.contains("done"), "{job}");
        assert_eq!(job.contains("reached"), reached, "{network}: {job}");
    }
    assert_nothing_left(&serve).await;
}

/// The tree of a host that ran Cloud Hypervisor before: the highest number is imported, and an earlier one on request.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_from_an_imported_tree() {
    let serve = serve().await;
    let image = image();
    let tree = serve.dir.join("tree");
    for dir in ["snapshots", "kernels"] {
        std::fs::create_dir_all(tree.join(dir)).unwrap();
    }
    for (from, to) in [
        ("disk.qcow2", "snapshots/ubuntu-base.2.qcow2"),
        ("disk.qcow2", "snapshots/ubuntu-base.10.qcow2"),
        ("vmlinuz", "kernels/vmlinuz-6.1.0-9"),
        ("initramfs.img", "kernels/initrd.img-6.1.0-9"),
    ] {
        std::fs::copy(image.join(from), tree.join(to)).unwrap();
    }
    // Versions differ, as they do in the field.
    let resized = std::process::Command::new("qemu-img")
        .args(["resize", "-q", "-f", "qcow2"])
        .arg(tree.join("snapshots/ubuntu-base.10.qcow2"))
        .arg("+64M")
        .status();
    assert!(resized.unwrap().success());
    let import = async |name: &str, path: std::path::PathBuf| {
        let body = json!({
            "name": name, "layout": "cloud-hypervisor", "path": path, "cpus": 1, "memory_mib": 192,
            "cmdline": "console=ttyS0 quiet panic=-1 no_timer_check", "handover": "seed",
        });
        let (status, imported) = serve.post("/templates/import", body).await;
        assert_eq!(status, 201, "{imported}");
        assert_eq!(imported["template"]["driver"], "cloud-hypervisor", "{imported}");
        let digest = imported["template"]["digest"].as_str().unwrap().to_owned();
        // One name follows the numbers.
        let (status, named) =
            serve.send(reqwest::Method::PUT, "/templates/ubuntu", Some(json!({"digest": digest, "why": name}))).await;
        assert!(matches!(status, 200 | 201), "{named}");
        digest
    };
    let second = import("ubuntu-base.2", tree.join("snapshots/ubuntu-base.2.qcow2")).await;
    let tenth = import("ubuntu-base.10", tree).await;
    assert_ne!(second, tenth);
    let command = json!({"kind": "command", "command": "uname -s; exit 3"});
    let vm = serve.create(json!({"template": "ubuntu", "runner": command})).await;
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!((&end["job"]["exit_code"], &end["template_digest"]), (&json!(3), &json!(tenth)), "{end:#}");
    let (status, back) = serve.post("/templates/ubuntu/rollback", json!({})).await;
    assert_eq!((status, &back["digest"]), (200, &json!(second)), "{back}");
    assert_nothing_left(&serve).await;
}
