//! The end of a job: nothing the runner does after its hook may be lost, and a guest that says nothing ends all the same.

use serde_json::json;

use crate::support::Serve;

/// The runner works for five seconds *after* its hook's DELETE: what it uploads then must arrive.
#[tokio::test(flavor = "multi_thread")]
async fn work_after_the_hooks_delete_is_not_lost() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let script = r#"
echo "job runs"
sh -e "$ACTIONS_RUNNER_HOOK_JOB_STARTED"
sh -e "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED"
for second in 1 2 3 4 5; do sleep 1; echo "uploading $second"; done
echo "result uploaded"
exit 3
"#;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "script", "script": script}})).await;
    let id = vm["id"].as_str().unwrap();
    let draining = serve.wait_state(id, "draining").await;
    assert_eq!(draining["announced_by"], "hook");
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!(end["end_signal"], "runner_finished", "{end:#}");
    assert_eq!(end["job"]["exit_code"], 3);
    let log = serve.log_of(id, "job").await;
    assert!(log.contains("uploading 5") && log.contains("result uploaded"), "{log}");
    let at = |state: &str| {
        let entry = end["timeline"].as_array().unwrap().iter().find(|e| e["state"] == state).unwrap().clone();
        entry["at"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap()
    };
    assert!(at("stopping").duration_since(at("draining")).as_secs_f64() >= 4.5, "{end:#}");
    serve.assert_nothing_left().await;
}

/// A job kills everything of its user. Where the wrapper is another user, its end is reported; elsewhere the guest falls
/// silent, and a budget ends the vm.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_kills_everything_ends_within_a_budget() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let command = r#"echo before; curl -q -s -K "$MAYFLY_HOME/curlrc" -o /dev/null -X POST -H 'Content-Type: application/json' \
        -d '{"type":"job_result","exit_code":0}' "$MAYFLY_URL/vms/$MAYFLY_VM_ID/events"
        (: >"$MAYFLY_HOME/wrapper.curlrc"); (: >"$MAYFLY_HOME/tell.sh"); kill -9 -1; exit 5"#;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "command", "command": command}})).await;
    let id = vm["id"].as_str().unwrap();
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!(end["runner"]["separate_users"], true, "{end:#}");
    assert_eq!(end["end_signal"], "runner_finished", "{end:#}");
    assert_eq!(end["job"], json!({"exit_code": 5, "reported_by": "wrapper", "results_differ": true}));
    assert!(serve.log_of(id, "job").await.contains("before"));

    serve.template("shared", "ssh", json!({})).await;
    let vm = serve
        .create(json!({
            "template": "shared", "runner": {"kind": "command", "command": "kill -9 -1"},
            "budgets": {"heartbeat_seconds": 8, "stop_grace_seconds": 0},
        }))
        .await;
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!(
        (&end["runner"]["separate_users"], &end["end_signal"]),
        (&json!(false), &json!("heartbeat_budget")),
        "{end:#}"
    );
    assert_eq!(end["outcome"]["code"], "guest.silent");

    // The hook did speak, and the proof never comes: the drain budget ends it.
    let script = r#"sh -e "$ACTIONS_RUNNER_HOOK_JOB_COMPLETED"; kill -9 -1"#;
    let vm = serve
        .create(json!({
            "template": "shared", "runner": {"kind": "script", "script": script},
            "budgets": {"drain_seconds": 3},
        }))
        .await;
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!((&end["announced_by"], &end["end_signal"]), (&json!("hook"), &json!("drain_budget")), "{end:#}");

    // Only the wrapper: what watches it says so.
    let script = r#"kill -9 "$(cat "$MAYFLY_HOME/run/wrapper.pid")"; sleep 600"#;
    let vm = serve.create(json!({"template": "shared", "runner": {"kind": "script", "script": script}})).await;
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!(end["outcome"]["code"], "guest.failed", "{end:#}");
    serve.assert_nothing_left().await;
}

/// What the guest knows at once ends the vm at once, with the guest's words.
#[tokio::test(flavor = "multi_thread")]
async fn what_keeps_a_job_from_starting_is_said_at_once() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    for (command, words) in [
        ("#!/usr/bin/python99\necho ran\n", "/usr/bin/python99"),
        ("#!/bin/sh\r\necho ran\r\n", "carriage return"),
        ("\u{feff}#!/bin/sh\necho ran\n", "byte order mark"),
    ] {
        let vm = serve.create(json!({"template": "micro", "runner": {"kind": "command", "command": command}})).await;
        let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
        assert_eq!((&end["outcome"]["code"], &end["attempt"]), (&json!("job.unusable"), &json!(1)), "{end:#}");
        assert!(end["outcome"]["detail"].as_str().unwrap().contains(words), "{end:#}");
        assert_eq!(end["runner"]["started"], "no", "{end:#}");
    }
    let script = r#"echo "PATH=$PATH in $(pwd) as $(id -un), $HOME $SHELL, $(umask)"; poweroff -f; exit 127"#;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "script", "script": script}})).await;
    let id = vm["id"].as_str().unwrap();
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!(
        (&end["outcome"]["result"], &end["outcome"]["code"]),
        (&json!("failed"), &json!("runner.failed")),
        "{end:#}"
    );
    let log = serve.log_of(id, "job").await;
    let wanted =
        "PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin in /home/runner as runner, /home/runner /bin/sh, 0022";
    assert!(log.contains(wanted), "{log}");
    serve.assert_nothing_left().await;
}

/// The other ways in which a guest ends: it powers itself off; its hypervisor is killed; it never boots.
#[tokio::test(flavor = "multi_thread")]
async fn every_other_end_is_named() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    serve.template("mute", "seed", json!({"boot_seconds": 1, "max_attempts": 2})).await;
    let vm = serve.create(json!({"template": "micro", "runner": {"kind": "none"}})).await;
    let lost = vm["id"].as_str().unwrap();
    let off =
        serve.create(json!({"template": "micro", "runner": {"kind": "none"}})).await["id"].as_str().unwrap().to_owned();
    serve.wait_state(lost, "running").await;
    let pidfile = |id: &str| serve.dir.join(format!("instances/mayfly-{id}/qemu.pid"));
    let pid: i32 = std::fs::read_to_string(pidfile(lost)).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    let end = serve.wait_state(lost, "deleted").await;
    assert_eq!(
        (&end["end_signal"], &end["outcome"]["result"], &end["outcome"]["code"]),
        (&json!("instance_gone"), &json!("lost"), &json!("instance.lost"))
    );

    // The power button, as a guest's own `poweroff` would end it.
    serve.wait_state(&off, "running").await;
    let socket = serve.dir.join(format!("instances/mayfly-{off}/qmp.sock"));
    super::qmp(&socket, "system_powerdown").await.unwrap();
    let end = serve.wait_state(&off, "deleted").await;
    assert_eq!(
        (&end["end_signal"], &end["outcome"]["result"]),
        (&json!("guest_power_off"), &json!("completed")),
        "{end:#}"
    );

    // Too slow for its budget: tried twice on fresh clones, then given up.
    let vm = serve.create(json!({"template": "mute", "runner": {"kind": "none"}})).await;
    let end = serve.wait_state(vm["id"].as_str().unwrap(), "deleted").await;
    assert_eq!((&end["outcome"]["code"], &end["attempt"]), (&json!("guest.not_ready"), &json!(2)), "{end:#}");
    assert_eq!(end["end_signal"], "given_up");
    serve.assert_nothing_left().await;
}
