//! Stages that are cancelled, runners that are killed, vms that end, and a service that is away.

use std::{process::Stdio, sync::atomic::Ordering};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use super::{super::gate::Gate, GitLab, Job, SYSTEM_FAILURE, job};

/// The first line of output that this is true of.
async fn says(child: &mut Child, what: impl Fn(&str) -> bool) {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if what(&line) {
            // Read on: a closed pipe would be noticed.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return;
        }
    }
    panic!("it ended without saying it");
}

/// Starts the stage by a process that simulates the runner, and can be killed.
fn started_by_runner(gitlab: &GitLab, of_try: &Job, stage: &[&str]) -> Child {
    let stage = gitlab.stage(of_try, stage);
    let mut runner = Command::new("/bin/sh");
    runner.args(["-c", "\"$@\" & wait", "sh"]).arg(stage.as_std().get_program()).args(stage.as_std().get_args());
    runner.env_clear().envs(stage.as_std().get_envs().filter_map(|(name, value)| Some((name, value?))));
    runner.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
}

/// Takes both slots.
async fn full(gitlab: &GitLab) -> [Job; 2] {
    [gitlab.prepared(1, "linux").await, gitlab.prepared(2, "linux").await]
}

fn is_queued(line: &str) -> bool {
    line.contains("waits for a slot")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_that_is_cancelled_or_loses_its_runner_leaves_no_vm() {
    let gitlab = GitLab::new().await;
    let others = full(&gitlab).await;
    let of_try = gitlab.configured(&job(3, "linux")).await;
    let mut prepare = gitlab.stage(&of_try, &["prepare"]).spawn().unwrap();
    says(&mut prepare, is_queued).await;
    kill_process(Pid::from_raw(prepare.id().unwrap() as i32).unwrap(), Signal::TERM).unwrap();
    let cancelled = prepare.wait_with_output().await.unwrap();
    assert_eq!(cancelled.status.code(), Some(SYSTEM_FAILURE));
    let err = String::from_utf8(cancelled.stderr).unwrap();
    assert_eq!(err, "ERROR: the preparation was cancelled; its vm is ended\n");
    let queued = async || gitlab.vms().await.iter().filter(|vm| vm["state"] == "queued").count();
    assert_eq!(queued().await, 0);

    let of_try = gitlab.configured(&job(4, "linux")).await;
    let mut runner = started_by_runner(&gitlab, &of_try, &["prepare"]);
    says(&mut runner, is_queued).await;
    let waiting = gitlab.vms().await.into_iter().find(|vm| vm["state"] == "queued").unwrap();
    runner.kill().await.unwrap();
    gitlab.ended(waiting["id"].as_str().unwrap()).await;
    for of_try in &others {
        gitlab.ran(of_try, &["cleanup"]).await.ends(0);
    }
    gitlab.all_ended().await;
    assert_eq!(gitlab.records().await.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_vm_of_a_job_whose_runner_was_killed_is_ended() {
    let gitlab = GitLab::new().await;
    let of_try = gitlab.prepared(7, "linux").await;
    let other = gitlab.prepared(8, "linux").await;
    let script = gitlab.write("endless", "echo begun; exec sleep 600");
    let mut runner = started_by_runner(&gitlab, &of_try, &["run", script.to_str().unwrap(), "build_script"]);
    says(&mut runner, |line| line == "begun").await;
    let own = gitlab.vms().await.into_iter().find(|vm| vm["labels"]["gitlab.job"] == "7").unwrap();
    runner.kill().await.unwrap();
    gitlab.ended(own["id"].as_str().unwrap()).await;
    gitlab.script(&other, "true").await.ends(0);
    gitlab.ran(&other, &["cleanup"]).await.ends(0);
    gitlab.all_ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_ends_in_its_job_is_no_failure_of_the_job() {
    let gitlab = GitLab::new().await;
    let of_try = gitlab.prepared(7, "linux").await;
    let script = gitlab.write("endless", "echo begun; exec sleep 600");
    let mut run = gitlab.stage(&of_try, &["run", script.to_str().unwrap(), "build_script"]).spawn().unwrap();
    says(&mut run, |line| line == "begun").await;
    let id = gitlab.vms().await[0]["id"].as_str().unwrap().to_owned();
    gitlab.api.delete(&format!("/vms/{id}?force=true"), &gitlab.api.admin).await.ok(202);
    let ended = run.wait_with_output().await.unwrap();
    let err = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(SYSTEM_FAILURE), "{err}");
    assert!(err.starts_with("ERROR: build_script: ") && err.contains("[vm.ended]"), "{err}");
    assert!(err.contains("; the vm has ended (cancelled"), "{err}");
    gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    gitlab.all_ended().await;
}

/// The SSH server of the guest kills the connection: how the script ended is not known.
#[tokio::test(flavor = "multi_thread")]
async fn a_script_whose_session_fails_is_no_failure_of_the_job() {
    let gitlab = GitLab::new().await;
    let of_try = gitlab.prepared(8, "linux").await;
    let ran = gitlab.script(&of_try, "kill -KILL $PPID; sleep 60").await.ends(SYSTEM_FAILURE);
    assert!(ran.err.contains("[session.failed]") && !ran.err.contains("budget"), "{}", ran.err);
    gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    gitlab.all_ended().await;
}

/// The service has the request when the preparation is killed, and performs it while the cleanup looks for the vm.
#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_that_is_killed_leaves_nothing_after_the_cleanup() {
    let gitlab = GitLab::new().await;
    let gate = Gate::before(&gitlab.api.url).await;
    gitlab.configure(&gate.url, "");
    let of_try = gitlab.configured(&job(7, "linux")).await;
    let mut prepare = gitlab.stage(&of_try, &["prepare"]).spawn().unwrap();
    gate.arrived.acquire().await.unwrap().forget();
    prepare.kill().await.unwrap();
    let mut cleanup = gitlab.stage(&of_try, &["cleanup"]).spawn().unwrap();
    // The cleanup has looked once: two lists, of which the second one is of records.
    crate::cli::within(|| gate.lists.load(Ordering::SeqCst) >= 2).await;
    gate.release.add_permits(1);
    assert!(cleanup.wait().await.unwrap().success());
    gitlab.all_ended().await;
    assert_eq!(gitlab.records().await.len(), 1, "the creation was served");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_is_away_for_a_moment_costs_nothing() {
    let gitlab = GitLab::new().await;
    let gate = Gate::before(&gitlab.api.url).await;
    gate.release.add_permits(10);
    gitlab.configure(&gate.url, "");
    let of_try = gitlab.configured(&job(7, "linux")).await;
    gate.outage.store(2, Ordering::SeqCst);
    // The session goes past the gate, which passes on no WebSockets: so far and no further.
    gitlab.ran(&of_try, &["prepare"]).await.ends(SYSTEM_FAILURE);
    assert_eq!(gitlab.vms().await.len(), 1, "a repeated request makes no second vm");
    gate.outage.store(2, Ordering::SeqCst);
    gitlab.ran(&of_try, &["cleanup"]).await.ends(0);
    gitlab.all_ended().await;
    gate.outage.store(u32::MAX, Ordering::SeqCst);
    gitlab.configure(&gate.url, "");
    let text = std::fs::read_to_string(gitlab.path("mayfly.toml")).unwrap().replace("= 20", "= 1");
    gitlab.write("mayfly.toml", &text);
    let ran = gitlab.ran(&of_try, &["cleanup"]).await.ends(SYSTEM_FAILURE);
    assert!(ran.err.contains("503"), "{}", ran.err);
}
