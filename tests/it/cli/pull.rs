use std::{process::Stdio, time::Duration};

use serde_json::{Value, json};

use super::{
    Mayfly,
    double::{Double, ID},
};

const REF: &str = "registry.example/ci/macos-base:latest";
const DIGEST: &str = "sha256:0123456789abcdef";

fn pull(state: &str, done: u64, more: Value) -> Value {
    let mut pull = json!({
        "id": ID, "image": REF, "name": "macos-base", "state": state, "generation": 1,
        "progress": { "bytes_done": done << 20, "bytes_total": 1000 << 20, "chunks_done": 1, "chunks_total": 2,
                      "bytes_per_second": 50 << 20, "eta_seconds": 72 },
        "error": null, "failures": 0, "retry_at": null, "discarded": false, "digest": null,
        "created_at": "2026-11-20T10:00:00Z",
    });
    pull.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pull
}

async fn double(answer: Value) -> Double {
    let double = Double::start().await;
    double.on("POST /templates", 202, pull("pulling", 400, json!({})));
    double.on(&format!("GET /pulls/{ID}"), 200, answer);
    double
}

#[tokio::test]
async fn a_pull_is_followed_in_plain_lines_without_a_terminal() {
    let double = double(pull("done", 1000, json!({ "digest": DIGEST, "generation": 2 }))).await;
    let mayfly = Mayfly::of(&double);
    let ran = mayfly.run(&["template", "pull", REF]).await.ends(0);
    assert_eq!(ran.out, format!("macos-base  {DIGEST}\n"));
    assert_eq!(
        ran.err,
        format!(
            "pulling {REF}\n 40 %  400.0 MiB of 1000.0 MiB  50.0 MiB/s  1m12s left\n100 %  1000.0 MiB of 1000.0 MiB  50.0 MiB/s  1m12s left\n"
        )
    );
    assert!(ran.err.lines().all(|line| line.chars().count() <= 80), "{}", ran.err);
    let asked = double.last();
    assert!(asked.query.contains("wait_generation=1") && asked.query.contains("timeout_seconds="), "{}", asked.query);
    let ran = mayfly.run(&["template", "pull", REF, "--as", "x", "--json"]).await.ends(0);
    assert_eq!(ran.json()["digest"], DIGEST);
}

#[tokio::test]
async fn the_request_matches_the_options() {
    let double = double(pull("done", 1000, json!({}))).await;
    let mayfly = Mayfly::of(&double);
    mayfly.write("smoke.sh", "#!/bin/sh\ntrue\n");
    let args =
        ["template", "pull", REF, "--as", "x", "--cpus", "4", "--handover", "ssh", "--ssh-key", "id", "--detach"];
    let ran = mayfly.run(&[&args[..], &["--smoke", "smoke.sh", "--smoke-timeout", "5m"]].concat()).await.ends(0);
    assert_eq!((ran.out.trim(), ran.err.as_str()), (ID, ""));
    assert_eq!(
        double.last().body,
        json!({ "image": REF, "name": "x", "cpus": 4, "handover": "ssh", "ssh_key": mayfly.path("id"),
                "canary": { "command": "#!/bin/sh\ntrue\n", "timeout_seconds": 300 } })
    );
    let ran = mayfly.run(&["template", "pull", REF, "--smoke", "none.sh"]).await.ends(2);
    assert!(ran.err.contains("--smoke: none.sh"), "{}", ran.err);
    mayfly.run(&["template", "pull", REF, "--smoke-timeout", "5m"]).await.ends(2);
}

#[tokio::test]
async fn a_pull_that_fails_says_why() {
    let error = json!({ "code": "image.refused", "detail": "nobody knows\u{1b}[2J it", "at": "2026-11-20T10:00:00Z" });
    let double = double(pull("failed", 400, json!({ "error": error, "generation": 2 }))).await;
    let mayfly = Mayfly::of(&double);
    let ran = mayfly.run(&["template", "pull", REF]).await.ends(1);
    assert_eq!(ran.out, "");
    assert!(ran.err.contains("nobody knows\u{fffd}[2J it [image.refused]"), "{}", ran.err);
    let ran = mayfly.run(&["template", "pull", REF, "--json"]).await.ends(1);
    let said: Value = serde_json::from_str(ran.err.lines().last().unwrap()).unwrap();
    assert_eq!(said["code"], "image.refused");

    double.on(&format!("GET /pulls/{ID}"), 200, pull("cancelled", 400, json!({ "generation": 2 })));
    assert!(mayfly.run(&["template", "pull", REF]).await.ends(1).err.contains("the pull was cancelled"));
}

#[tokio::test]
async fn a_failure_that_is_waited_out_is_said_once() {
    let error = json!({ "code": "image.unavailable", "detail": "it is away", "at": "2026-11-20T10:00:00Z" });
    let waits = json!({ "error": error, "failures": 1, "retry_at": "2026-11-20T10:00:05Z" });
    let double = Double::start().await;
    double.on("POST /templates", 200, pull("pulling", 0, waits));
    double.on(&format!("GET /pulls/{ID}"), 200, pull("done", 1000, json!({ "generation": 2, "digest": DIGEST })));
    let ran = Mayfly::of(&double).run(&["template", "pull", REF]).await.ends(0);
    let line = "image.unavailable: it is away; trying again at 2026-11-20 10:00:05Z\n";
    assert_eq!(ran.err.matches(line).count(), 1, "{}", ran.err);
}

#[tokio::test]
async fn an_interrupted_command_leaves_the_pull_to_the_service() {
    let double = double(pull("pulling", 400, json!({}))).await;
    let mayfly = Mayfly::of(&double);
    let mut command = mayfly.command(&["template", "pull", REF]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap()).unwrap();
    // It listens for the signal by the time it asks how far the pull is.
    for _ in 0..200 {
        if double.asked().iter().any(|asked| asked.path.starts_with("/pulls/")) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("the pull goes on") && said.contains(&format!("pull-cancel {ID}")), "{said}");
    assert!(said.lines().all(|line| line.chars().count() <= 80), "{said}");
    assert!(double.asked().iter().all(|asked| asked.method != "DELETE"));
}

#[tokio::test]
async fn pulls_are_listed_and_cancelled() {
    let double = Double::start().await;
    let error = json!({ "code": "image.refused", "detail": "no", "at": "2026-11-20T10:00:00Z" });
    let items = json!([pull("pulling", 250, json!({})), pull("failed", 0, json!({ "error": error }))]);
    double.on("GET /pulls", 200, json!({ "items": items, "next_cursor": null }));
    double.on(&format!("DELETE /pulls/{ID}"), 200, pull("cancelled", 0, json!({ "discarded": true })));
    let mayfly = Mayfly::of(&double);
    let ran = mayfly.run(&["template", "pulls"]).await.ends(0);
    let lines: Vec<_> = ran.out.lines().collect();
    assert!(lines[1].contains("macos-base  pulling  25 %"), "{}", ran.out);
    assert!(lines[2].contains("failed") && lines[2].ends_with("image.refused"), "{}", ran.out);
    assert_eq!(mayfly.run(&["template", "pulls", "--json"]).await.ends(0).json()["items"], items);
    let ran = mayfly.run(&["template", "pull-cancel", ID]).await.ends(0);
    assert_eq!(ran.out, format!("{ID}  cancelled\n"));
    assert_eq!(double.last().query, "");
    mayfly.run(&["template", "pull-cancel", ID, "--discard"]).await.ends(0);
    assert_eq!(double.last().query, "discard=true");
    double.on("GET /pulls", 200, json!({ "items": [] }));
    assert!(mayfly.run(&["template", "pulls"]).await.ends(0).err.contains("no pulls"));
}

#[tokio::test]
async fn a_watch_is_set_shown_and_removed() {
    let double = Double::start().await;
    let watch = json!({
        "template": "macos", "image": REF, "every_seconds": 1800, "canary": { "command": "true", "timeout_seconds": 900 },
        "looked_at": "2026-11-20T10:00:00Z",
        "error": { "code": "image.unavailable", "detail": "away", "at": "2026-11-20T10:00:00Z" },
    });
    double.on("PUT /templates/macos/watch", 200, watch.clone());
    double.on("GET /templates/macos/watch", 200, watch.clone());
    double.on("GET /templates/macos", 200, json!({ "name": "macos", "digest": DIGEST }));
    double.on_bytes("DELETE /templates/macos/watch", 204, "application/json", b"");
    let mayfly = Mayfly::of(&double);
    mayfly.write("smoke.sh", "true");
    let ran = mayfly.run(&["template", "watch", "macos", REF, "--every", "30m", "--smoke", "smoke.sh"]).await.ends(0);
    assert_eq!(ran.out, format!("macos  follows {REF}\n"));
    assert_eq!(double.last().body, json!({ "image": REF, "every_seconds": 1800, "canary": { "command": "true" } }));
    let shown = mayfly.run(&["template", "show", "macos"]).await.ends(0).out;
    assert!(shown.contains(&format!("{REF}, every 30m00s, with a test")), "{shown}");
    assert!(shown.contains("image.unavailable: away"), "{shown}");
    assert_eq!(mayfly.run(&["template", "show", "macos", "--json"]).await.ends(0).json()["watch"], watch);
    assert_eq!(mayfly.run(&["template", "unwatch", "macos"]).await.ends(0).out, "macos  follows no tag\n");
}
