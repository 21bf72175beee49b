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

/// A job that printed two lines. The first response breaks off after the first of them.
fn two_lines(double: &Double) {
    let log = |query: &str, text: &[u8]| {
        double.on_bytes(&format!("GET /vms/{ID}/logs?source=job{query}"), 200, "text/plain", text);
    };
    log("", b"one\n");
    log("&follow=true", b"one\n");
    log("&offset=4&follow=true", b"two\n");
    log("&offset=4", b"two\n");
    log("&offset=8&follow=true", b"");
    log("&offset=8", b"");
}

async fn run(end: Value, args: &[&str]) -> (super::Ran, Double) {
    let double = Double::start().await;
    let records = life(end);
    double.on("POST /vms", 201, records[0].clone()).lives(records);
    two_lines(&double);
    let ran = Mayfly::of(&double).run(&[&["run", "-t", "micro"], args].concat()).await;
    (ran, double)
}

#[tokio::test]
async fn run_prints_the_output_of_its_command_and_has_its_exit_code() {
    let (ran, double) = run(completed(7), &["--", "echo", "a b", "--json"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (7, "one\ntwo\n"), "{}", ran.err);
    let posted = double.asked().into_iter().find(|asked| asked.path == "/vms").unwrap().body;
    assert_eq!(posted["runner"], json!({ "kind": "command", "command": "echo 'a b' --json", "env": {} }));
    assert!(ran.err.contains("build-7: queued: waits for a slot, position 2\n"), "{}", ran.err);
    let (ran, double) = run(completed(0), &["--quiet", "make test && make"]).await;
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (0, "one\ntwo\n", ""));
    let posted = double.asked().into_iter().find(|asked| asked.path == "/vms").unwrap().body;
    assert_eq!(posted["runner"]["command"], "make test && make");
}

#[tokio::test]
async fn run_has_an_exit_code_of_its_own_where_the_command_has_none() {
    let failed = json!({ "outcome": { "result": "failed", "code": "guest.not_ready", "detail": "no answer" } });
    let (ran, _) = run(failed, &["true"]).await;
    assert_eq!(ran.code, 125);
    assert!(ran.err.contains("ended without a result of its command: failed [guest.not_ready]"), "{}", ran.err);
    // The job's result is known, and the vm was lost with what the job had to deliver.
    let lost = json!({ "outcome": { "result": "lost" }, "job": { "exit_code": 0 } });
    assert_eq!(run(lost, &["true"]).await.0.code, 125);
    let double = Double::start().await;
    double.problem("POST /vms", 422, "template.unknown", "no template is called micro");
    assert_eq!(Mayfly::of(&double).run(&["run", "-t", "micro", "true"]).await.code, 125);
    Mayfly::of(&double).run(&["run", "-t", "micro"]).await.ends(2);
}

#[tokio::test]
async fn an_interrupted_run_ends_its_vm() {
    let double = Double::start().await;
    let records = life(completed(0));
    // It does not end by itself.
    double.on("POST /vms", 201, records[0].clone()).lives(records[..4].to_vec());
    double.on(&format!("DELETE /vms/{ID}"), 202, records[4].clone());
    double.on_bytes(&format!("GET /vms/{ID}/logs"), 200, "text/plain", b"");
    let mayfly = Mayfly::of(&double);
    let mut command = mayfly.command(&["run", "-t", "micro", "sleep", "600"]);
    let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    let asked =
        |what: &str| double.asked().iter().any(|asked| format!("{} {}", asked.method, asked.path).contains(what));
    super::within(|| asked("/logs")).await;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    super::within(|| asked(&format!("DELETE /vms/{ID}"))).await;
    // A second one does not wait for the vm.
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = child.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(130), "{}", String::from_utf8_lossy(&ended.stderr));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("build-7 is being ended"));
    let deleted = double.asked().into_iter().find(|asked| asked.method == axum::http::Method::DELETE).unwrap();
    assert_eq!(deleted.query, "force=true");
}

#[tokio::test]
async fn an_interrupted_wait_says_what_goes_on() {
    // It is draining, and stays so.
    let records = life(completed(0));
    for (args, goes_on) in [
        (&["vm", "wait", ID][..], "the vm goes on"),
        (&["vm", "delete", ID, "--wait"], "the service ends them without this command"),
        (&["vm", "events", ID, "--follow"], "the vm goes on"),
        (&["vm", "logs", ID, "--follow"], "the vm goes on"),
        (&["vm", "create", "-t", "micro", "--none", "--wait"], "build-7 goes on"),
    ] {
        let double = Double::start().await;
        double.lives(records[5..6].to_vec()).on("POST /vms", 201, records[5].clone());
        double.on(&format!("DELETE /vms/{ID}"), 202, records[5].clone());
        double.on(&format!("GET /vms/{ID}/events"), 200, json!({ "items": [] }));
        double.on_bytes(&format!("GET /vms/{ID}/logs"), 200, "text/plain", b"");
        let mayfly = Mayfly::of(&double);
        let mut command = mayfly.command(args);
        let child = command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        // By the time it waits for a change, it listens for the signal.
        super::within(|| {
            double
                .asked()
                .iter()
                .any(|asked| asked.query.contains("wait_generation") || asked.query.contains("follow=true"))
        })
        .await;
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = child.wait_with_output().await.unwrap();
        let err = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(130), "{args:?}: {err}");
        assert!(err.lines().last().unwrap().starts_with(goes_on), "{args:?}: {err}");
    }
}

#[tokio::test]
async fn a_wait_says_what_it_waits_for() {
    let double = Double::start().await;
    double.lives(life(completed(7)));
    double.on(&format!("DELETE /vms/{ID}"), 202, life(completed(7))[4].clone());
    let ran = Mayfly::of(&double).run(&["vm", "wait", ID]).await.ends(0);
    assert_eq!(ran.out, "build-7  deleted  failed, exit code 7\n");
    let told: Vec<&str> = ran.err.lines().collect();
    assert_eq!(told[0], "build-7: queued: waits for a slot, position 2", "{}", ran.err);
    assert!(told.contains(&"build-7: running"), "{}", ran.err);
    assert!(told.contains(&"build-7: draining: waits until its runner has finished"), "{}", ran.err);
    let ran = Mayfly::of(&double).run(&["vm", "wait", ID, "--json"]).await.ends(0);
    assert_eq!(ran.err, "");
    double.lives(life(completed(7))[6..].to_vec());
    let ran = Mayfly::of(&double).run(&["vm", "delete", ID, "--wait"]).await.ends(0);
    assert_eq!(ran.out, "build-7  deleted  failed, exit code 7\n");
}

#[tokio::test]
async fn a_followed_log_goes_on_where_it_broke_off() {
    let double = Double::start().await;
    double.lives(life(completed(0))[6..].to_vec());
    two_lines(&double);
    let ran = Mayfly::of(&double).run(&["vm", "logs", ID, "--follow"]).await.ends(0);
    assert_eq!(ran.out, "one\ntwo\n");
}
