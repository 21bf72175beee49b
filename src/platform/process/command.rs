//! A child process: run to its end, or started. See the module above for what holds for all of them.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::{timeout, timeout_at},
};

use super::supervise::{self, CANNOT_SUPERVISE, NOT_FOUND};
use crate::platform::clock;

/// More output than this is no answer, where the caller does not say otherwise.
const STDOUT_LIMIT: usize = 8 << 20;
const STDERR_TAIL: usize = 4 << 10;
/// How long output is still read after the program is gone: a descendant may hold the pipe open for ever.
const LINGER: Duration = Duration::from_millis(500);
/// What a program sees of this process's environment, where the caller does not say otherwise.
const KEPT_ENV: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR"];

#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    keeps_env: fn(&str) -> bool,
    dir: Option<PathBuf>,
    stdin: Option<Vec<u8>>,
    stdout_limit: usize,
    reads_stderr: bool,
    /// `None`: as long as the caller waits.
    deadline: Option<Duration>,
    redact: Vec<String>,
    supervised: bool,
}

/// How a program ended that ran to its end, well or not.
#[derive(Debug)]
pub struct ProgramOutput {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    /// The end of what it wrote to standard error.
    pub stderr_tail: String,
}

#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("{program} is not installed here")]
    Missing { program: String },
    #[error("{program} could not be started")]
    Spawn { program: String, source: io::Error },
    #[error("{program} did not finish within {seconds} s")]
    Deadline { program: String, seconds: u64, stdout: Vec<u8>, stderr_tail: String },
    #[error("{program} wrote more than {} KiB", limit >> 10)]
    Flood { program: String, limit: usize },
    #[error("{program} could not be followed")]
    Io { program: String, source: io::Error },
}

impl ProgramOutput {
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

impl Command {
    pub fn new(program: impl Into<PathBuf>, deadline: Duration) -> Self {
        Self { deadline: Some(deadline), ..Self::without_deadline(program) }
    }

    /// For work whose length is not known beforehand. It ends with the future that waits for it.
    pub fn without_deadline(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            keeps_env: |name| KEPT_ENV.contains(&name),
            dir: None,
            stdin: None,
            stdout_limit: STDOUT_LIMIT,
            reads_stderr: true,
            deadline: None,
            redact: Vec::new(),
            supervised: true,
        }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Which variables of this process's environment the program sees, in place of the few that all programs see.
    pub fn keep_env(mut self, keeps: fn(&str) -> bool) -> Self {
        self.keeps_env = keeps;
        self
    }

    /// Without this, the program works in this process's working directory.
    pub fn current_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// A program that writes more to its standard output is killed.
    pub fn stdout_limit(mut self, bytes: usize) -> Self {
        self.stdout_limit = bytes;
        self
    }

    /// For a program that may write secrets to its standard error. It has no supervisor, which would report errors there.
    pub fn ignore_stderr(mut self) -> Self {
        self.reads_stderr = false;
        self.unsupervised()
    }

    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// A word that is replaced in the captured standard error, should the program repeat it, and in logged arguments.
    pub fn redact(mut self, secret: impl Into<String>) -> Self {
        self.redact.push(secret.into());
        self
    }

    /// For a program that only looks and is asked often: it may outlive this process for a moment.
    pub fn unsupervised(mut self) -> Self {
        self.supervised = false;
        self
    }

    fn name(&self) -> String {
        self.program.file_name().unwrap_or(self.program.as_os_str()).to_string_lossy().into_owned()
    }

    #[expect(clippy::disallowed_methods, reason = "all programs are prepared here")]
    fn prepared(&self, supervisor: Option<&Path>) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(supervisor.unwrap_or(&self.program));
        if supervisor.is_some() {
            command.arg("supervise").arg(std::process::id().to_string()).arg("--").arg(&self.program);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
            .args(&self.args)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(self.keeps_env)))
            // Error texts are read by programs.
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    fn spawn(&self, command: &mut tokio::process::Command) -> Result<Child, CommandError> {
        let args: Vec<String> = self.args.iter().map(|arg| self.redacted(&arg.to_string_lossy())).collect();
        tracing::debug!(program = %self.program.display(), ?args, "starting a program");
        command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing { program: self.name() },
            _ => CommandError::Spawn { program: self.name(), source },
        })
    }

    /// Starts a program that lives long. Its output goes to two files, it lives on when the returned value is dropped, and it has
    /// no deadline. It is in this process's session and group; a program that is to outlive this process has to leave both.
    pub fn start(self, stdout: std::fs::File, stderr: std::fs::File) -> Result<Child, CommandError> {
        let mut command = self.prepared(None);
        // A program that lives on in this process's directory would keep its volume from being unmounted.
        command.current_dir("/").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        self.spawn(&mut command)
    }

    /// As `run`, for callers outside of the runtime.
    pub fn run_blocking(self) -> Result<ProgramOutput, CommandError> {
        let program = self.name();
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map(|runtime| runtime.block_on(self.run()))
        };
        // A runtime cannot be driven on a thread that drives another one.
        let ran = std::thread::scope(|scope| scope.spawn(run).join());
        ran.unwrap_or_else(|_| Err(io::Error::other("the thread panicked")))
            .unwrap_or_else(|source| Err(CommandError::Spawn { program, source }))
    }

    /// Runs it to its end. An exit status other than 0 is no error here: the caller knows what it means.
    pub async fn run(self) -> Result<ProgramOutput, CommandError> {
        self.run_watched(|_, _| OutputWatch::Continue).await
    }

    /// Like `run`, and shows `watch` each piece of output as it arrives. `OutputWatch::Stop` kills the program: its output up to then
    /// is returned with the status of a killed program.
    pub async fn run_watched(
        mut self,
        watch: impl FnMut(Stream, &[u8]) -> OutputWatch + Send,
    ) -> Result<ProgramOutput, CommandError> {
        let ends = self.deadline.map(|deadline| clock::monotonic() + deadline);
        let supervisor = supervise::supervisor().filter(|_| self.supervised);
        let mut command = self.prepared(supervisor);
        command
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(if self.reads_stderr { Stdio::piped() } else { Stdio::null() })
            .process_group(0)
            .kill_on_drop(true);
        let mut child = self.spawn(&mut command)?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));

        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let stop = tokio::sync::Notify::new();
        let watch = Mutex::new(watch);
        let limit = self.stdout_limit;
        let written = AtomicUsize::new(0);
        let show = |stream, piece: &[u8]| {
            let mut watch = watch.lock();
            let total = match stream {
                Stream::Stdout => written.fetch_add(piece.len(), Ordering::Relaxed) + piece.len(),
                Stream::Stderr => 0,
            };
            if watch(stream, piece) == OutputWatch::Stop || total > limit {
                stop.notify_one();
            }
        };
        let show = &show;
        let input = self.stdin.take().zip(child.stdin.take());
        let pipes = {
            let (out, err) = (child.stdout.take(), child.stderr.take());
            let (stdout, stderr) = (&mut stdout, &mut stderr);
            async move {
                let feed = async {
                    if let Some((bytes, mut pipe)) = input {
                        // A program that does not want its input says so by its exit status, not by this broken pipe.
                        let _ = pipe.write_all(&bytes).await;
                    }
                };
                tokio::join!(
                    feed,
                    collect(out, stdout, Keep::Head(limit), |piece| show(Stream::Stdout, piece)),
                    collect(err, stderr, Keep::Tail(STDERR_TAIL), |piece| show(Stream::Stderr, piece)),
                );
            }
        };
        let waited = {
            tokio::pin!(pipes);
            let mut drained = false;
            let ended = async {
                loop {
                    tokio::select! {
                        status = child.wait() => break status,
                        () = &mut pipes, if !drained => drained = true,
                        () = stop.notified() => group.kill(),
                    }
                }
            };
            let waited = match ends {
                Some(ends) => timeout_at(ends, ended).await,
                None => Ok(ended.await),
            };
            if waited.is_err() {
                group.kill();
            } else if !drained {
                let _ = timeout(LINGER, &mut pipes).await;
            }
            waited
        };
        let stderr_tail = self.redacted(String::from_utf8_lossy(&stderr).trim());
        let flooded = written.into_inner() > limit;
        match waited {
            Err(_) => {
                // Reaps it; the signal is on its way.
                let _ = timeout(LINGER, child.wait()).await;
                group.forget();
                let seconds = self.deadline.unwrap_or_default().as_secs();
                Err(CommandError::Deadline { program: self.name(), seconds, stdout, stderr_tail })
            }
            Ok(Err(source)) => Err(CommandError::Io { program: self.name(), source }),
            Ok(Ok(_)) if flooded => Err(CommandError::Flood { program: self.name(), limit }),
            Ok(Ok(status)) if supervisor.is_some() && stderr_tail.starts_with(CANNOT_SUPERVISE) => {
                group.forget();
                let program = self.name();
                Err(match status.code() {
                    Some(code) if code == i32::from(NOT_FOUND) => CommandError::Missing { program },
                    _ => CommandError::Spawn { program, source: io::Error::other(stderr_tail) },
                })
            }
            Ok(Ok(status)) => {
                // Reaped: the group's id may soon belong to strangers.
                group.forget();
                Ok(ProgramOutput { status, stdout, stderr_tail })
            }
        }
    }

    fn redacted(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in self.redact.iter().filter(|s| !s.is_empty()) {
            text = text.replace(secret, "[redacted]");
        }
        text
    }
}

/// Kills a command's process group when the future that runs it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }

    fn forget(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// Whether a program whose output is watched goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputWatch {
    Continue,
    Stop,
}

/// Which part of a stream is kept, and how much of it.
enum Keep {
    Head(usize),
    Tail(usize),
}

/// Reads to the end whatever comes, so that the writer never blocks, and keeps a bounded part of it.
async fn collect(from: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>, keep: Keep, show: impl Fn(&[u8])) {
    let Some(mut from) = from else { return };
    let mut chunk = [0u8; 8192];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        show(&chunk[..n]);
        match keep {
            Keep::Head(limit) => {
                let room = limit.saturating_sub(into.len());
                into.extend_from_slice(&chunk[..n.min(room)]);
            }
            Keep::Tail(limit) => {
                into.extend_from_slice(&chunk[..n]);
                let excess = into.len().saturating_sub(limit);
                into.drain(..excess);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline: Duration) -> Command {
        Command::new("sh", deadline).args(["-c", script])
    }

    const SOON: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn captures_what_a_program_says() {
        let out =
            sh("cat; echo oops pw1 >&2; exit 3", SOON).stdin(b"hello".to_vec()).redact("pw1").run().await.unwrap();
        assert_eq!(out.status.code(), Some(3));
        assert_eq!(out.stdout, b"hello");
        assert_eq!(out.stderr_tail, "oops [redacted]");
    }

    #[tokio::test]
    async fn keeps_only_the_end_of_errors() {
        let out = sh("i=0; while [ $i -lt 3000 ]; do echo line $i >&2; i=$((i+1)); done", SOON).run().await.unwrap();
        assert!(out.stderr_tail.len() <= STDERR_TAIL);
        assert!(out.stderr_tail.ends_with("line 2999"));
    }

    #[tokio::test]
    async fn unread_input_is_no_error() {
        let out = sh("exit 0", SOON).stdin(vec![0; 1 << 20]).run().await.unwrap();
        assert!(out.status.success());
    }

    #[tokio::test]
    async fn a_program_that_writes_too_much_is_killed() {
        let error = sh("while :; do echo more; done", SOON).stdout_limit(64 << 10).run().await.unwrap_err();
        assert_eq!(error.to_string(), "sh wrote more than 64 KiB");
        let out = sh("printf 12345", SOON).stdout_limit(5).run().await.unwrap();
        assert_eq!(out.stdout, b"12345");
    }

    #[tokio::test]
    async fn standard_error_can_be_ignored() {
        let out = sh("echo secret >&2; pwd", SOON).ignore_stderr().current_dir("/").run().await.unwrap();
        assert_eq!((out.stdout_text().as_str(), out.stderr_tail.as_str()), ("/\n", ""));
    }

    #[test]
    fn a_program_can_be_waited_for_without_a_runtime() {
        assert_eq!(Command::without_deadline("echo").arg("hi").run_blocking().unwrap().stdout, b"hi\n");
    }

    #[tokio::test]
    async fn a_program_past_its_deadline_dies_with_its_children() {
        let began = std::time::Instant::now();
        let error = sh("echo begun; sleep 60 & sleep 60", Duration::from_millis(300)).run().await.unwrap_err();
        match error {
            CommandError::Deadline { stdout, .. } => assert_eq!(stdout, b"begun\n"),
            other => panic!("{other}"),
        }
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[tokio::test]
    async fn a_watched_program_is_stopped_when_enough_was_seen() {
        let began = std::time::Instant::now();
        let mut seen = String::new();
        let watch = |stream, piece: &[u8]| {
            assert_eq!(stream, Stream::Stdout);
            seen.push_str(&String::from_utf8_lossy(piece));
            if seen.contains('\n') { OutputWatch::Stop } else { OutputWatch::Continue }
        };
        let out = sh("echo enough; sleep 60", SOON).run_watched(watch).await.unwrap();
        assert!(!out.status.success());
        assert_eq!((seen.as_str(), out.stdout_text().as_str()), ("enough\n", "enough\n"));
        assert!(began.elapsed() < Duration::from_secs(8));
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_child_that_keeps_the_pipe_does_not_keep_us() {
        let began = std::time::Instant::now();
        // In a session of its own, like a daemonized hypervisor that forgot to close its output.
        let out = sh("setsid sleep 5 & echo done", SOON).run().await.unwrap();
        assert_eq!(out.stdout, b"done\n");
        assert!(began.elapsed() < Duration::from_secs(4));
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Command::new("no-such-program-here", SOON).run().await.unwrap_err();
        assert!(matches!(error, CommandError::Missing { program } if program == "no-such-program-here"));
    }

    #[tokio::test]
    async fn the_environment_of_this_process_stays_here() {
        let out = sh("env", SOON).env("ADDED", "1").run().await.unwrap();
        let text = out.stdout_text();
        assert!(text.contains("ADDED=1") && text.contains("PATH="));
        assert!(!text.contains("CARGO"), "{text}");
    }
}
