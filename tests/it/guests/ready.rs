//! Readiness checks in real guests.

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{cli::program, support::Serve};

async fn set_ready(serve: &Serve, template: &str, ready: Value) {
    let (status, template) =
        serve.send(reqwest::Method::PATCH, &format!("/templates/{template}"), Some(json!({ "ready": ready }))).await;
    assert_eq!(status, 200, "{template:#}");
}

/// A service that is started late: the job runs after it answers, and the vm's record has its version.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_waits_for_the_service_in_its_guest() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    set_ready(&serve, "micro", json!({"preset": "guest-daemon", "interval_seconds": 1})).await;
    let job = json!({"kind": "command", "command": "curl -s http://127.0.0.1:2280/health"});
    let vm = serve.create(json!({"template": "micro", "name": "waits", "network": "isolated", "runner": job})).await;
    let id = vm["id"].as_str().unwrap();
    serve.wait_state(id, "configuring").await;
    // The wrapper runs, and with it the check.
    let start = "until [ -s /opt/mayfly/run/wrapper.started ]; do sleep 0.1; done
        mkdir /tmp/service && cd /tmp/service && echo well >health && echo '{\"version\":\"v0.9-test\"}' >version &&
        busybox httpd -p 127.0.0.1:2280 -h /tmp/service";
    let mut mayfly = Command::new(program());
    mayfly.arg("--data-dir").arg(&serve.dir).args(["vm", "exec", "waits", "--", "sh", "-c", start]);
    let started = mayfly.env_remove("MAYFLY_URL").kill_on_drop(true).output().await.unwrap();
    assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));

    let end = serve.wait_state(id, "deleted").await;
    assert_eq!((&end["outcome"]["result"], &end["attempt"]), (&json!("completed"), &json!(1)), "{end:#}");
    assert_eq!((&end["ready"]["check"], &end["ready"]["version"]), (&json!("guest-daemon"), &json!("v0.9-test")));
    assert!(end["ready"]["seconds"].as_f64().unwrap() > 0.0, "{end:#}");
    assert!(serve.log_of(id, "job").await.contains("well"));
    let events = serve.get(&format!("/vms/{id}/events?limit=200")).await;
    let at = |kind: &str| {
        let items = events["items"].as_array().unwrap();
        items.iter().position(|event| event["type"] == kind).unwrap_or_else(|| panic!("no {kind}: {events:#}"))
    };
    assert!(at("session_opened") < at("guest_checked") && at("guest_checked") < at("guest_configured"), "{events:#}");
    let metrics = serve.get("/metrics").await;
    assert!(
        metrics.as_str().unwrap().contains("mayfly_guest_ready_seconds_count{check=\"guest-daemon\"} 1"),
        "{metrics}"
    );
    serve.assert_nothing_left().await;
}

/// Each attempt has a fresh guest, and the vm fails with what the last one saw.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_never_gets_ready_is_replaced_and_the_vm_says_why() {
    let serve = Serve::start(&[]).await;
    for (handover, ready, detail) in [
        (
            "ssh",
            json!({"http": {"port": 2281, "path": "/health"}, "interval_seconds": 1, "budget_seconds": 2}),
            "the readiness check http on port 2281 (/health) did not succeed within 2 s; the guest saw last: no answer: curl: (7)",
        ),
        (
            "seed",
            json!({"exec": "echo no database >&2; exit 3", "interval_seconds": 1, "budget_seconds": 3}),
            "the readiness check exec did not succeed within 3 s; the guest saw last: exit code 3: no database",
        ),
    ] {
        serve.template(handover, handover, json!({"max_attempts": 2})).await;
        set_ready(&serve, handover, ready.clone()).await;
        let vm =
            serve.create(json!({"template": handover, "runner": {"kind": "command", "command": "echo ran"}})).await;
        let id = vm["id"].as_str().unwrap();
        let end = serve.wait_state(id, "deleted").await;
        assert_eq!((&end["outcome"]["code"], &end["attempt"]), (&json!("guest.check_failed"), &json!(2)), "{end:#}");
        assert!(end["outcome"]["detail"].as_str().unwrap().starts_with(detail), "{end:#}");
        assert_eq!((&end["ready"], &end["runner"]["started"]), (&json!(null), &json!("no")), "{end:#}");
        assert_eq!(serve.log_of(id, "job").await, "");
        let kind = ready.as_object().unwrap().keys().find(|key| !key.ends_with("_seconds")).unwrap();
        let failures = format!("mayfly_guest_check_failures_total{{check=\"{kind}\"}} 2");
        let metrics = serve.get("/metrics").await;
        assert!(metrics.as_str().unwrap().contains(&failures), "{metrics}");
    }
    serve.assert_nothing_left().await;
}
