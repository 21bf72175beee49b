//! Following a vm: what is shown, and what the exit code says.

use serde_json::{Value, json};

use super::{
    Mayfly,
    double::{Double, ID, life, vm},
};

async fn create(end: Value, more: &[&str]) -> (super::Ran, Double) {
    let double = Double::start().await;
    let records = life(end);
    let mut created = records[0].clone();
    created["callback_token"] = json!("mfv_secret");
    double.on("POST /vms", 201, created).lives(records);
    let mut args = vec!["vm", "create", "--template", "micro", "--command", "true"];
    args.extend(more);
    (Mayfly::of(&double).run(&args).await, double)
}

fn completed(exit_code: i32) -> Value {
    json!({ "outcome": { "result": "completed" }, "job": { "exit_code": exit_code }, "end_signal": "runner_finished",
            "announced_by": "hook", "announced_at": "2026-11-20T10:02:36.5Z", "deleted_at": "2026-11-20T10:02:38Z" })
}

#[tokio::test]
async fn the_timeline_has_a_line_for_each_state_and_the_end() {
    let (ran, _) = create(completed(0), &["--follow"]).await;
    let expected = format!(
        "\
build-7  {ID}  micro
  queued: waits for a slot, position 2
  queued: waits for a slot, position 1
  queued          2.5 s
  cloning         0.1 s
  booting         3.9 s
  running         2m30s
  draining        1.5 s
  deleted         2m38s in all
outcome        completed
announced by   hook, 2m36s after its creation
end signal     runner_finished
job            exit code 0
"
    );
    assert_eq!(ran.ends(0).out, expected);
}

#[tokio::test]
async fn the_exit_code_tells_a_failed_job_from_a_failed_vm() {
    create(completed(0), &["--wait"]).await.0.ends(0);
    create(completed(3), &["--wait"]).await.0.ends(10);
    create(completed(3), &["--follow"]).await.0.ends(10);
    let failed = json!({ "outcome": { "result": "failed", "code": "guest.not_ready", "detail": "no answer" } });
    let (ran, _) = create(failed, &["--follow"]).await;
    assert!(ran.out.contains("outcome        failed [guest.not_ready]: no answer"), "{}", ran.out);
    ran.ends(3);
    // A vm without a runner has no job; ended as asked, it is cancelled.
    create(json!({ "outcome": { "result": "completed" } }), &["--wait"]).await.0.ends(0);
    create(json!({ "outcome": { "result": "cancelled" } }), &["--wait"]).await.0.ends(3);
}

#[tokio::test]
async fn waiting_prints_the_id_or_the_final_record() {
    let (ran, _) = create(completed(0), &["--wait"]).await;
    assert_eq!(ran.out.trim(), ID);
    for how in ["--wait", "--follow"] {
        let (ran, _) = create(completed(0), &[how, "--json"]).await;
        assert_eq!(ran.json()["state"], "deleted");
        assert!(!ran.out.contains("callback_token") && !ran.out.contains("mfv_secret"));
    }
}

#[tokio::test]
async fn following_outlives_a_restart_of_the_service() {
    let double = Double::start().await;
    double.on("POST /vms", 201, life(completed(0))[0].clone()).lives(life(completed(0))).outage(1);
    let ran = Mayfly::of(&double).run(&["vm", "create", "-t", "micro", "--none", "--follow"]).await.ends(0);
    assert!(ran.out.contains("outcome        completed"));
}

#[tokio::test]
async fn a_fault_that_was_overcome_is_shown() {
    let double = Double::start().await;
    let at = "2026-11-20T10:00:00Z";
    let fault = json!({ "last_fault": { "code": "boot.failed", "detail": "no\u{1b}[2J kernel", "at": at } });
    let mut end = completed(0);
    end["last_fault"] = fault["last_fault"].clone();
    let records = vec![
        vm(1, &[("booting", at)], json!({})),
        vm(2, &[("booting", at)], fault),
        vm(3, &[("booting", at), ("deleted", at)], end),
    ];
    double.on("POST /vms", 201, records[0].clone()).lives(records);
    let ran = Mayfly::of(&double).run(&["vm", "create", "-t", "micro", "--none", "-f"]).await.ends(0);
    assert_eq!(ran.out.matches("boot.failed: no\u{fffd}[2J kernel").count(), 1, "{}", ran.out);
}

#[tokio::test]
async fn wait_ends_with_the_state_with_the_vm_or_with_the_time() {
    let double = Double::start().await;
    let mayfly = Mayfly::of(&double);
    double.lives(life(completed(0)));
    mayfly.run(&["vm", "wait", ID, "--state", "running"]).await.ends(0);
    assert_eq!(mayfly.run(&["vm", "wait", ID, "--json"]).await.ends(0).json()["state"], "deleted");
    // It went from cloning straight to its end: it can no longer reach this one.
    mayfly.run(&["vm", "wait", ID, "--state", "configuring"]).await.ends(3);

    double.lives(life(completed(0)).into_iter().take(3).collect());
    let ran = mayfly.run(&["vm", "wait", ID, "--timeout", "1s"]).await.ends(6);
    assert!(ran.err.contains("--timeout"), "{}", ran.err);
}

#[tokio::test]
async fn events_are_followed_to_the_last() {
    let double = Double::start().await;
    double.lives(life(completed(0)));
    let event = |seq: u32, kind: &str| json!({ "seq": seq, "vm_id": ID, "generation": seq, "at": "2026-11-20T10:00:00Z", "state": "queued", "type": kind });
    let mut fault = event(2, "attempt_failed");
    fault["fault"] = json!({ "code": "boot.failed", "detail": "no kernel", "at": "2026-11-20T10:00:00Z" });
    double.on(&format!("GET /vms/{ID}/events"), 200, json!({ "items": [event(1, "slot_taken"), fault] }));
    let mayfly = Mayfly::of(&double);
    for args in [&["vm", "events", ID][..], &["vm", "events", ID, "--follow"]] {
        let ran = mayfly.run(args).await.ends(0);
        assert_eq!(
            ran.out,
            "2026-11-20 10:00:00Z  queued       slot_taken\n\
             2026-11-20 10:00:00Z  queued       attempt_failed  fault=boot.failed no kernel\n"
        );
    }
    let ran = mayfly.run(&["vm", "events", ID, "--follow", "--json"]).await.ends(0);
    let seqs: Vec<Value> = ran.out.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["seq"].clone()).collect();
    assert_eq!(seqs, [1, 2]);
}
