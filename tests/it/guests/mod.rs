//! Whole lives with real guests: a real service, real QEMU, real hooks. A life takes seconds, so each test proves several
//! things about one life.

use serde_json::{Value, json};

use crate::support::Serve;

mod accelerator;
mod away;
mod canary;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod cloud_hypervisor;
mod crash;
#[cfg(target_arch = "x86_64")]
mod descriptors;
mod ends;
mod gitlab;
mod images;
mod macosvm;
mod ready;
mod run;
mod session;
mod stopped;
mod tart;

fn states(vm: &Value) -> Vec<&str> {
    vm["timeline"].as_array().unwrap().iter().map(|e| e["state"].as_str().unwrap()).collect()
}

const WHOLE_LIFE: [&str; 9] =
    ["queued", "cloning", "booting", "configuring", "running", "draining", "stopping", "deleting", "deleted"];

/// Sends one QMP command to a guest's QEMU, as another program on this host would, and returns the answer. Fails while QEMU
/// has made its socket but does not listen on it yet.
async fn qmp(socket: &std::path::Path, command: &str) -> std::io::Result<String> {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    let (read, mut write) = tokio::net::UnixStream::connect(socket).await?.into_split();
    let mut lines = BufReader::new(read).lines();
    let closed = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
    let mut answer = lines.next_line().await?.ok_or_else(closed)?;
    for command in ["qmp_capabilities", command] {
        write.write_all(format!("{{\"execute\":\"{command}\"}}\n").as_bytes()).await?;
        loop {
            answer = lines.next_line().await?.ok_or_else(closed)?;
            if answer.contains("\"return\"") {
                break;
            }
        }
    }
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_lives_for_one_job_and_dies_by_its_own_hook() {
    for handover in ["seed", "ssh"] {
        let serve = Serve::start(&[]).await;
        serve.template("micro", handover, json!({})).await;
        let vm = serve
            .create(json!({
                "template": "micro", "name": "job-1",
                "runner": {"kind": "command", "command": "echo \"hello $GREETING from $(id -un)\"; exit 7", "env": {"GREETING": "'quoted' \"world\""}},
            }))
            .await;
        let id = vm["id"].as_str().unwrap();
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!(states(&end), WHOLE_LIFE, "{handover}");
        assert_eq!(end["announced_by"], "hook", "{handover}: {end:#}");
        assert_eq!(end["end_signal"], "runner_finished", "{handover}: {end:#}");
        assert_eq!(end["outcome"]["result"], "completed");
        assert_eq!(end["job"]["exit_code"], 7);
        let job = serve.log_of(id, "job").await;
        assert!(job.contains("hello 'quoted' \"world\" from runner"), "{handover}: {job}");
        // The micro guest boots quietly; what its seed says goes to the console.
        assert!(handover == "ssh" || !serve.log_of(id, "console").await.is_empty(), "the console log outlives the vm");
        assert!(!serve.log_of(id, "boot").await.is_empty(), "the boot log outlives the vm");
        serve.assert_nothing_left().await;
        // A DELETE that comes late is answered, not refused.
        assert_eq!(serve.delete(&format!("/vms/{id}")).await.0, 200);
    }
}

/// The token that the guest has, and the guest API's socket, used as a guest would, from the host.
async fn as_guest(serve: &Serve, token: &str, method: &str, path: &str, body: Option<&str>) -> u16 {
    let mut command = tokio::process::Command::new("curl");
    command
        .args(["--silent", "--output", "/dev/null", "--write-out", "%{http_code}", "--max-time", "10"])
        .arg("--unix-socket")
        .arg(serve.dir.join("guest.sock"))
        .args(["--request", method, "--header", &format!("Authorization: Bearer {token}")]);
    if let Some(body) = body {
        command.args(["--header", "Content-Type: application/json", "--data", body]);
    }
    let output = command.arg(format!("http://guest{path}")).output().await.unwrap();
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_may_touch_itself_and_nothing_else() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let a = serve.create(json!({"template": "micro", "runner": {"kind": "none"}})).await;
    let b = serve.create(json!({"template": "micro", "runner": {"kind": "none"}})).await;
    let (a_id, b_id) = (a["id"].as_str().unwrap(), b["id"].as_str().unwrap());
    let token = a["callback_token"].as_str().unwrap();
    assert_eq!(as_guest(&serve, token, "GET", &format!("/vms/{a_id}"), None).await, 200);
    assert_eq!(as_guest(&serve, token, "GET", &format!("/vms/{b_id}"), None).await, 403);
    assert_eq!(as_guest(&serve, token, "DELETE", &format!("/vms/{b_id}"), None).await, 403);
    let nobody = "01999999-9999-7999-8999-999999999999";
    assert_eq!(as_guest(&serve, token, "DELETE", &format!("/vms/{nobody}"), None).await, 403);
    assert_eq!(as_guest(&serve, token, "GET", "/vms", None).await, 404, "the guest API has no listing");
    assert_eq!(
        as_guest(&serve, serve.token(), "DELETE", &format!("/vms/{a_id}"), None).await,
        403,
        "not even with an admin's token"
    );
    // Both reach `running` by their own calls, out of an isolated network.
    for id in [a_id, b_id] {
        let vm = serve.wait_state(id, "running").await;
        assert_eq!(vm["runner"]["status"], "none");
        assert_eq!(serve.delete(&format!("/vms/{id}")).await.0, 202);
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!((&end["end_signal"], &end["outcome"]["result"]), (&json!("admin"), &json!("cancelled")));
    }
    serve.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_third_vm_waits_for_a_slot_and_says_so() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let job = || json!({"template": "micro", "runner": {"kind": "command", "command": "true"}});
    let ids: Vec<String> = {
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(serve.create(job()).await["id"].as_str().unwrap().to_owned());
        }
        ids
    };
    let waits = |vm: &Value| vm["queue"]["reason"] == "slot" && vm["queue"]["position"] == 1;
    // That others leave the queue is no news of the one that waits.
    for id in &ids[..2] {
        serve.wait(id, "it has a slot", |vm| vm["state"] != "queued").await;
    }
    serve.wait(&ids[2], "it is the first to wait for a slot", waits).await;
    let mut now = job();
    now["queue_timeout_seconds"] = json!(0);
    let (status, problem) = serve.post("/vms", now).await;
    assert_eq!((status, &problem["code"]), (409, &json!("slot.unavailable")));
    for id in &ids {
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!(end["outcome"]["result"], "completed", "{end:#}");
    }
    serve.assert_nothing_left().await;
}
