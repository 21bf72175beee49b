//! `mayfly vm exec` and `mayfly vm ssh` with real guests.

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

use crate::{
    cli::program,
    support::{Serve, tart::Mac},
};

fn mayfly(serve: &Serve, args: &[&str]) -> Command {
    let mut command = Command::new(program());
    command.arg("--data-dir").arg(&serve.dir).args(args).env_remove("MAYFLY_URL").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

async fn with_input(mut command: Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writing = tokio::spawn(async move {
        let _ = stdin.write_all(&input).await;
    });
    let output = child.wait_with_output().await.unwrap();
    writing.await.unwrap();
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

async fn running(serve: &Serve, name: &str) -> String {
    let vm = serve.create(json!({"template": "micro", "name": name, "runner": {"kind": "none"}})).await;
    let id = vm["id"].as_str().unwrap().to_owned();
    serve.wait_state(&id, "running").await;
    id
}

async fn sessions(serve: &Serve, id: &str) -> Vec<Value> {
    let events = serve.get(&format!("/vms/{id}/events?limit=200")).await;
    events["items"].as_array().unwrap().iter().filter(|event| event["type"] == "session_opened").cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_in_a_guest_has_its_input_output_and_exit_code() {
    for handover in ["seed", "ssh"] {
        let serve = Serve::start(&[]).await;
        serve.template("micro", handover, json!({})).await;
        let id = running(&serve, "looked-into").await;
        let script = "id -un; cat; echo \"it's $1\" >&2; exit 7";
        let command = mayfly(&serve, &["vm", "exec", "looked-into", "--", "sh", "-c", script, "x", "a 'quoted' $word"]);
        let done = with_input(command, b"what comes in\n").await;
        assert_eq!(done.status.code(), Some(7), "{handover}: {}", text(&done.stderr));
        assert_eq!(text(&done.stdout), "runner\nwhat comes in\n", "{handover}");
        assert_eq!(text(&done.stderr), "it's a 'quoted' $word\n", "{handover}");

        // More than all buffers between here and there, both ways at once.
        let big: Vec<u8> = (0..4_000_000u32).map(|n| (n % 251) as u8).collect();
        let echoed = with_input(mayfly(&serve, &["vm", "exec", &id, "--", "cat"]), &big).await;
        assert_eq!(echoed.status.code(), Some(0), "{handover}: {}", text(&echoed.stderr));
        assert!(echoed.stdout == big, "{handover}: {} bytes came back", echoed.stdout.len());

        // A command whose output nothing reads any more has no result, which is not success.
        let mut child = mayfly(&serve, &["vm", "exec", &id, "--", "yes"]).spawn().unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(child.wait().await.unwrap().code(), Some(125), "{handover}");

        // Each is recorded with who did it, and without what it was.
        let recorded = sessions(&serve, &id).await;
        assert_eq!(recorded.len(), 3, "{recorded:#?}");
        assert!(
            recorded.iter().all(|event| event["token"].is_string() && event["token_name"].is_string()),
            "{recorded:#?}"
        );
        let all = serde_json::to_string(&serve.get(&format!("/vms/{id}/events?limit=200")).await).unwrap();
        assert!(!all.contains("quoted") && !serve.log().contains("quoted"));

        let mut no_terminal = mayfly(&serve, &["vm", "exec", &id, "-t", "--", "cat"]).spawn().unwrap();
        assert_eq!(no_terminal.wait().await.unwrap().code(), Some(2), "--tty without a terminal");
        serve.delete(&format!("/vms/{id}?force=true")).await;
        serve.wait_state(&id, "deleted").await;
        let refused = mayfly(&serve, &["vm", "exec", &id, "--", "true"]).output().await.unwrap();
        assert_eq!(refused.status.code(), Some(125));
        assert!(text(&refused.stderr).contains("vm.ended"), "{}", text(&refused.stderr));
        serve.assert_nothing_left().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_vm_is_kept_can_be_looked_into_and_goes_after_its_time() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let command = "echo evidence > /tmp/found; exit 3";
    let body = json!({
        "template": "micro", "name": "failed", "keep_on_failure": {"seconds": 45},
        "runner": {"kind": "command", "command": command},
    });
    let vm = serve.create(body).await;
    let id = vm["id"].as_str().unwrap();
    let kept = serve.wait_state(id, "kept").await;
    assert_eq!(
        (&kept["deadline"]["budget"], &kept["job"]["exit_code"]),
        (&json!("keep_on_failure"), &json!(3)),
        "{kept:#}"
    );
    assert_eq!(serve.get("/host").await["kept"][0]["id"], id);
    // A death of the service changes neither the guest nor its deadline.
    serve.kill();
    serve.spawn().await;
    assert_eq!(serve.get(&format!("/vms/{id}")).await["deadline"], kept["deadline"]);
    let seen = mayfly(&serve, &["vm", "exec", "failed", "--", "cat", "/tmp/found"]).output().await.unwrap();
    assert_eq!((text(&seen.stdout), seen.status.code()), ("evidence\n".to_owned(), Some(0)), "{}", text(&seen.stderr));
    let end = serve.wait_state(id, "deleted").await;
    assert_eq!(
        (&end["outcome"]["code"], &end["end_signal"]),
        (&json!("job.failed"), &json!("runner_finished")),
        "{end:#}"
    );
    let at = |key: &Value| key.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    assert!(at(&end["deleted_at"]) >= at(&kept["deadline"]["at"]), "{end:#}");
    serve.assert_nothing_left().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_ends_with_its_vm_and_with_the_service_and_says_so() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let id = running(&serve, "brief").await;
    let begun = async |serve: &Serve| {
        let mut child =
            mayfly(serve, &["vm", "exec", "brief", "--", "sh", "-c", "echo begun; sleep 600"]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("begun"), "{}", serve.log());
        child
    };
    let child = begun(&serve).await;
    serve.kill();
    let lost = child.wait_with_output().await.unwrap();
    assert_eq!(lost.status.code(), Some(255), "{}", text(&lost.stderr));
    assert!(text(&lost.stderr).contains("the session was lost"), "{}", text(&lost.stderr));
    serve.spawn().await;

    let child = begun(&serve).await;
    serve.delete(&format!("/vms/{id}?force=true")).await;
    let ended = child.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(255), "{}", text(&ended.stderr));
    assert!(text(&ended.stderr).contains("[vm.ended]"), "{}", text(&ended.stderr));
    serve.wait_state(&id, "deleted").await;
    serve.assert_nothing_left().await;
}

/// A caller that is there and answers nothing, as behind a network that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_a_caller_that_answers_nothing_ends() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let id = running(&serve, "silent").await;
    let script = "echo begun; cat; : > /tmp/ended";
    let mut caller =
        mayfly(&serve, &["vm", "exec", "silent", "--", "sh", "-c", script]).stdin(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(caller.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("begun"), "{}", serve.log());
    let pid = rustix::process::Pid::from_raw(caller.id().unwrap().try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    // It ends after 60 seconds, and with it the input of what ran.
    let ended = mayfly(
        &serve,
        &["vm", "exec", "silent", "--", "sh", "-c", "while ! [ -e /tmp/ended ]; do sleep 1; done; echo gone"],
    );
    let seen = tokio::time::timeout(std::time::Duration::from_secs(120), with_input(ended, b"")).await;
    assert_eq!(text(&seen.expect("the session ends").stdout), "gone\n", "{}", serve.log());
    caller.kill().await.unwrap();
    serve.delete(&format!("/vms/{id}?force=true")).await;
    serve.wait_state(&id, "deleted").await;
    serve.assert_nothing_left().await;
}

/// In a pseudo-terminal that `script` makes.
#[tokio::test(flavor = "multi_thread")]
async fn a_shell_has_a_terminal_whose_keys_go_to_the_guest() {
    let serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let id = running(&serve, "shell").await;
    let line = format!(
        "stty rows 33 cols 101; exec '{}' --data-dir '{}' vm ssh shell",
        program().display(),
        serve.dir.display()
    );
    let mut script = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .env_remove("MAYFLY_URL")
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("script, of util-linux");
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut shown = String::new();
    let mut until = async |shown: &mut String, what: &str| {
        let mut buffer = [0; 4096];
        let reading = async {
            while !shown.contains(what) {
                let n = screen.read(&mut buffer).await.unwrap();
                assert_ne!(n, 0, "the shell ended: {shown}");
                shown.push_str(&text(&buffer[..n]));
            }
        };
        let read = tokio::time::timeout(std::time::Duration::from_secs(60), reading).await;
        assert!(read.is_ok(), "{what:?} is not shown: {shown}");
    };
    // What is typed is echoed: the marks are put together by the shell. It drops what is typed before its prompt.
    const PROMPT: &str = "next> ";
    keys.write_all(b"stty size; PS1='ne''xt> '\r").await.unwrap();
    until(&mut shown, PROMPT).await;
    assert!(shown.contains("33 101"), "{shown}");
    // Ctrl-C ends what runs in the guest, and not the session. The program itself says that it runs.
    keys.write_all(b"sh -c \"echo sle''eps; exec sleep 600\"\r").await.unwrap();
    until(&mut shown, "sleeps").await;
    shown.clear();
    keys.write_all(b"\x03").await.unwrap();
    until(&mut shown, PROMPT).await;
    keys.write_all(b"echo af''ter\r").await.unwrap();
    until(&mut shown, "after").await;
    keys.write_all(b"exit 9\r").await.unwrap();
    assert_eq!(script.wait().await.unwrap().code(), Some(9));
    assert_eq!(sessions(&serve, &id).await.len(), 1);
    serve.delete(&format!("/vms/{id}?force=true")).await;
    serve.wait_state(&id, "deleted").await;
    serve.assert_nothing_left().await;
}

/// A guest without an SSH login is reached through the agent in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_through_the_agent_of_a_guest_without_a_login() {
    let mac = Mac::start("darwin").await;
    mac.template("micro", "agent", json!({})).await;
    let id = running(&mac.serve, "by-agent").await;
    let command = mayfly(
        &mac.serve,
        &["vm", "exec", "by-agent", "--", "sh", "-c", "cat; echo \"it's $1\" >&2; exit 7", "x", "a $word"],
    );
    let done = with_input(command, b"what comes in\n").await;
    assert_eq!(done.status.code(), Some(7), "{}", text(&done.stderr));
    assert_eq!((text(&done.stdout), text(&done.stderr)), ("what comes in\n".to_owned(), "it's a $word\n".to_owned()));
    assert_eq!(sessions(&mac.serve, &id).await.len(), 1);
    mac.serve.delete(&format!("/vms/{id}?force=true")).await;
    mac.serve.wait_state(&id, "deleted").await;
    mac.assert_nothing_left().await;
}
