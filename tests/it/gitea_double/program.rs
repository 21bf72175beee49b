//! The program that simulates Gitea's runner in guests, in the shell of this machine.

use std::{
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use aws_lc_rs::digest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::states;
use crate::support::gitea::{Gitea, Program, runner_program};

/// A guest's directory: a `.runner` file, a configuration, and two pipes by which a script and the test wait for each other.
struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    fn new(gitea: &Gitea, program: Option<&Program<'_>>) -> Guest {
        let guest = Guest { dir: tempfile::tempdir().unwrap() };
        if let Some(program) = program {
            std::fs::write(guest.path(".runner"), program.registration(&gitea.root, &["mac"])).unwrap();
        }
        for pipe in ["reached", "go"] {
            assert!(Command::new("mkfifo").arg(guest.path(pipe)).status().unwrap().success());
        }
        let hooks = format!(
            "log:\n  level: info\nrunner:\n  file: '{}'\n  envs:\n    FLAVOUR: it's plain\n  hooks:\n    job_started: '{}'\n    \
             job_completed: '{}'\ncache:\n  enabled: false\n",
            guest.path(".runner").display(),
            guest.path("started").display(),
            guest.path("completed").display(),
        );
        std::fs::write(guest.path("config.yaml"), hooks).unwrap();
        guest.script("started", "echo started hook");
        guest.script("completed", "echo completed hook");
        guest
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn script(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(self.path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Lines of a script that says where it is, and goes on when the test does.
    fn meet(&self) -> String {
        format!("echo here >{}\nread -r word <{}\n", self.path("reached").display(), self.path("go").display())
    }

    /// Waits until the script is there.
    async fn reached(&self) {
        let pipe = self.path("reached");
        tokio::task::spawn_blocking(move || std::fs::read_to_string(pipe).unwrap()).await.unwrap();
    }

    async fn go_on(&self) {
        let pipe = self.path("go");
        tokio::task::spawn_blocking(move || std::fs::write(pipe, "go\n").unwrap()).await.unwrap();
    }

    fn start(&self) -> Child {
        Command::new(runner_program())
            .args([Path::new("--config"), &self.path("config.yaml"), Path::new("daemon")])
            .current_dir(self.dir.path())
            .env("TMPDIR", self.dir.path())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

async fn ended(child: Child) -> (i32, String) {
    let output: Output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    (output.status.code().expect("it was not killed"), String::from_utf8(output.stderr).unwrap())
}

fn terminate(child: &Child) {
    kill_process(Pid::from_child(child), Signal::TERM).unwrap();
}

#[tokio::test]
async fn a_result_is_reported_after_the_completed_hook_and_the_whole_log() {
    let gitea = Gitea::start().await;
    let script = "echo \"a\\\\b\tc\"\necho $FLAVOUR >&2";
    let ids = gitea.job_with(json!({"labels": ["mac"], "script": script})).await;
    let guest = Guest::new(&gitea, Some(&gitea.register("vm-1", &["mac"]).await));
    guest.script("completed", &format!("echo completed hook\n{}", guest.meet()));
    let child = guest.start();
    guest.reached().await;
    let running = gitea.job_state(ids.job).await;
    assert_eq!(states(&running), json!(["in_progress", 1, null, "vm-1"]), "the hook runs in the job's place");
    guest.go_on().await;
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    let over = gitea.job_state(ids.job).await;
    assert_eq!(states(&over), json!(["completed", 1, "success", "vm-1"]), "{said}");
    assert_eq!(over["steps"][0]["conclusion"], "success");
    let log = over["log"].as_str().unwrap();
    let (_, lines) = log.split_once('\n').unwrap();
    assert_eq!(lines, "started hook\na\\b\tc\nit's plain\ncompleted hook\n");
    let sum = digest::digest(&digest::SHA256, log.as_bytes());
    assert_eq!(over["outputs"]["log_sha256"], hex::encode(sum.as_ref()));
    assert!(
        said.contains("declare successfully") && said.contains("level=info msg=\"task 1 repo is acme/app "),
        "{said}"
    );
    assert!(gitea.runners().await.is_empty());

    let (code, said) = ended(guest.start()).await;
    assert_eq!(code, 1, "the same file again");
    assert!(said.contains("unregistered runner"), "{said}");
}

#[tokio::test]
async fn a_failed_job_and_a_failed_hook_are_failures_of_the_job_and_not_of_the_program() {
    let gitea = Gitea::start().await;
    let failed = gitea.job_with(json!({"labels": ["mac"], "script": "exit 3"})).await;
    let guest = Guest::new(&gitea, Some(&gitea.register("vm-1", &["mac"]).await));
    let (code, said) = ended(guest.start()).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(gitea.job_state(failed.job).await["conclusion"], "failure");

    let hooked = gitea.job(&["mac"]).await;
    let guest = Guest::new(&gitea, Some(&gitea.register("vm-2", &["mac"]).await));
    guest.script("started", "exit 1");
    assert_eq!(ended(guest.start()).await.0, 0);
    let over = gitea.job_state(hooked.job).await;
    assert_eq!((&over["conclusion"], &over["steps"][0]["conclusion"]), (&json!("failure"), &json!("skipped")));
}

#[tokio::test]
async fn a_job_that_is_cancelled_goes_on_in_its_guest() {
    let gitea = Gitea::start().await;
    let guest = Guest::new(&gitea, Some(&gitea.register("vm-1", &["mac"]).await));
    let ids = gitea.job_with(json!({"labels": ["mac"], "script": guest.meet()})).await;
    let mut child = guest.start();
    guest.reached().await;
    gitea.order("cancel", ids.job).await;
    assert_eq!(child.try_wait().unwrap(), None);
    guest.go_on().await;
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("unregistered runner"), "{said}");
    assert_eq!(states(&gitea.job_state(ids.job).await), json!(["completed", 1, "cancelled", "vm-1"]));
}

#[tokio::test]
async fn a_signal_ends_an_idle_program_and_waits_for_a_step() {
    let gitea = Gitea::start().await;
    let guest = Guest::new(&gitea, Some(&gitea.register("vm-1", &["mac"]).await));
    let ids = gitea.job_with(json!({"labels": ["mac"], "script": guest.meet()})).await;
    let child = guest.start();
    guest.reached().await;
    terminate(&child);
    guest.go_on().await;
    assert_eq!(ended(child).await.0, 0);
    assert_eq!(gitea.job_state(ids.job).await["conclusion"], "failure");

    // Its row is gone: it has declared itself, and asks on.
    let program = gitea.register("vm-2", &["mac"]).await;
    let guest = Guest::new(&gitea, Some(&program));
    let child = guest.start();
    gitea.until("it asks for a task", async || gitea.count("FetchTask").await > 1).await;
    let token = gitea.owner_token().await;
    gitea.ask("DELETE", &format!("orgs/acme/actions/runners/{}", program.id), Some(&token)).await;
    let asked = gitea.count("FetchTask").await;
    gitea.until("it goes on asking", async || gitea.count("FetchTask").await > asked + 1).await;
    terminate(&child);
    let (code, said) = ended(child).await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("failed to fetch task"), "{said}");
}

#[tokio::test]
async fn without_a_registration_it_fails() {
    let gitea = Gitea::start().await;
    let (code, said) = ended(Guest::new(&gitea, None).start()).await;
    assert_eq!(code, 1);
    assert!(said.contains("registration file not found"), "{said}");
}

#[tokio::test]
async fn it_registers_by_itself_too() {
    let gitea = Gitea::start().await;
    let ids = gitea.job(&["mac"]).await;
    let token = gitea.owner_token().await;
    let (_, _, made) = gitea.ask("POST", "repos/acme/app/actions/runners/registration-token", Some(&token)).await;
    let guest = Guest::new(&gitea, None);
    let told = ["register", "--no-interactive", "--ephemeral", "--labels", "mac:host", "--name", "vm-1", "--instance"];
    let registered = Command::new(runner_program())
        .args(told)
        .args([&gitea.root, "--token", made["token"].as_str().unwrap()])
        .current_dir(guest.dir.path())
        .status()
        .unwrap();
    assert!(registered.success());
    assert_eq!(gitea.runners().await[0]["scope"], "repos/acme/app");
    let (code, said) = ended(guest.start()).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(states(&gitea.job_state(ids.job).await), json!(["completed", 1, "success", "vm-1"]));
}
