//! The command line as its users see it: the program itself, against a double of the API on the socket of a data directory.

mod commands;
mod config;
mod detach;
mod docs;
mod double;
mod endpoint;
mod follow;
mod listings;
mod local_admin;
mod pools;
mod pull;
mod relay;
mod usage;
mod versions;

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use serde_json::Value;
use tokio::process::Command;

/// The program, and a home of its own.
pub struct Mayfly {
    home: tempfile::TempDir,
}

pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("not JSON: {e}\n{}\n{}", self.out, self.err))
    }

    #[track_caller]
    pub fn ends(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "\nstdout: {}\nstderr: {}", self.out, self.err);
        self
    }
}

impl Mayfly {
    /// Without a service.
    pub fn new() -> Mayfly {
        let mayfly = Mayfly { home: tempfile::tempdir().expect("a temporary directory") };
        mayfly.write(".mayfly/admin.token", "mfa_the-admin-token\n");
        mayfly
    }

    /// With the double as the service of its data directory.
    pub fn of(double: &double::Double) -> Mayfly {
        let mayfly = Mayfly::new();
        double.listen(&mayfly.path(".mayfly/admin.sock"));
        mayfly
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::DirBuilderExt;
        let path = self.path(name);
        let dir = path.parent().expect("a file has a directory");
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).expect("a directory");
        std::fs::write(&path, text).expect("a file");
        path
    }

    /// The program with nothing of this environment in its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(args).env_clear().env("HOME", self.home.path());
        command.current_dir(self.home.path()).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    pub async fn run(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args)).await
    }
}

pub async fn run(command: &mut Command) -> Ran {
    let Output { status, stdout, stderr } = command.output().await.expect("the program starts");
    Ran {
        code: status.code().expect("it exits by itself"),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    }
}

/// Waits until this is true.
pub async fn within(what: impl Fn() -> bool) {
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !what() {
        assert!(tokio::time::Instant::now() < end, "it does not happen");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// Waits until this process has ended.
pub async fn has_ended(pid: i32) {
    within(|| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/stat"));
        // A process that no one waits for is a zombie.
        status.map_or(true, |stat| stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'))
    })
    .await;
}

pub fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_mayfly"))
}
