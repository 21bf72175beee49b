//! `mayfly run` with a real guest.

use std::process::Stdio;

use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::{cli::program, support::Serve};

#[tokio::test(flavor = "multi_thread")]
async fn run_shows_its_command_live_over_the_death_of_the_service() {
    let mut serve = Serve::start(&[]).await;
    serve.template("micro", "seed", json!({})).await;
    let mut child = tokio::process::Command::new(program())
        .arg("--data-dir")
        .arg(&serve.dir)
        .args(["run", "-t", "micro", "--label", "a=b", "--", "echo first; sleep 8; echo last; exit 7"])
        .env_remove("MAYFLY_URL")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("first"), "{}", serve.log());
    // The job runs on.
    serve.kill();
    serve.spawn().await;
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("last"), "{}", serve.log());
    assert_eq!(lines.next_line().await.unwrap(), None);
    let ended = child.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(7), "{said}");
    assert!(said.contains(": running"), "{said}");
    let vms = serve.get("/vms?label=a%3Db&outcome=completed").await;
    assert_eq!(vms["items"].as_array().unwrap().len(), 1, "{vms:#}");
    serve.assert_nothing_left().await;
    // One line tells how the vm ended.
    let log = serve.log();
    let line = log.lines().find(|line| line.contains("vm ended")).unwrap_or_else(|| panic!("{log}"));
    for part in ["result=\"completed\"", "exit_code=7", "announced_by=\"hook\"", "template=micro", "(queued "] {
        assert!(line.contains(part), "{part}: {line}");
    }
}
