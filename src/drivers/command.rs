//! Child processes: the only place of the driver layer that starts any.
//!
//! A command has a deadline, and its output is captured and bounded. It sees a small environment of its own, because this
//! process's one may hold tokens and cloud credentials that no hypervisor needs. Arguments are visible to every user of the
//! host, so a secret goes in through standard input or a file, never through them.
//!
//! When a command is dropped, or its deadline passes, its whole process group is killed. What has made itself a session of
//! its own (a daemonized hypervisor) is no longer in that group and lives on. So does what was let go of. Once the service has
//! said which program supervises its commands, they also die with the service, however that ends.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Child,
    time::{timeout, timeout_at},
};

use crate::platform::clock;

/// More output than this is not an answer but a flood.
const STDOUT_LIMIT: usize = 8 << 20;
const STDERR_TAIL: usize = 4 << 10;
/// How long output is still read after the program is gone: a descendant may hold the pipe open for ever.
const LINGER: Duration = Duration::from_millis(500);
/// What of our environment a child may see.
const KEPT_ENV: &[&str] = &["PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR"];

/// How `mayfly supervise` says that it could not run a program, and with which status.
pub const CANNOT_SUPERVISE: &str = "mayfly supervise: cannot run ";
pub const CANNOT_RUN: u8 = 126;
pub const NOT_FOUND: u8 = 127;

/// The program that supervises the commands of this process.
static SUPERVISOR: OnceLock<PathBuf> = OnceLock::new();

/// From now on, no command outlives this process. `mayfly`: this program.
pub fn die_with_this_process(mayfly: &Path) {
    let _ = SUPERVISOR.set(mayfly.to_owned());
}

#[derive(Debug)]
pub struct Command {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    stdin: Option<Vec<u8>>,
    deadline: Duration,
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
    #[error("{program} wrote more than {} MiB", STDOUT_LIMIT >> 20)]
    Flood { program: String },
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
        Self {
            program: program.into(),
            args: Vec::new(),
            env: Vec::new(),
            stdin: None,
            deadline,
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

    pub fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = Some(bytes);
        self
    }

    /// A word that is blotted out of the captured standard error, should the program repeat what it was given.
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

    fn prepared(&self, supervisor: Option<&Path>) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(supervisor.unwrap_or(&self.program));
        if supervisor.is_some() {
            command.arg("supervise").arg(std::process::id().to_string()).arg("--").arg(&self.program);
        }
        command
            .args(&self.args)
            .env_clear()
            .envs(KEPT_ENV.iter().filter_map(|k| Some((k, std::env::var_os(k)?))))
            // Error texts are read by programs.
            .env("LC_ALL", "C")
            .envs(self.env.iter().map(|(k, v)| (k, v)));
        command
    }

    fn spawn(&self, command: &mut tokio::process::Command) -> Result<Child, CommandError> {
        tracing::debug!(program = %self.program.display(), args = ?self.args, "starting a program");
        command.spawn().map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => CommandError::Missing { program: self.name() },
            _ => CommandError::Spawn { program: self.name(), source },
        })
    }

    /// Starts it and lets go of it: what it says goes to two files, it lives on when the returned value is dropped, and the
    /// deadline plays no part. It is in this process's own session and group; a program that is to outlive us has to leave both.
    pub fn let_go(self, stdout: std::fs::File, stderr: std::fs::File) -> Result<Child, CommandError> {
        let mut command = self.prepared(None);
        // Not ours: a service that lives on in a directory would keep its volume from being unmounted.
        command.current_dir("/").stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        self.spawn(&mut command)
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
        let ends = clock::monotonic() + self.deadline;
        let supervisor = SUPERVISOR.get().filter(|_| self.supervised);
        let mut command = self.prepared(supervisor.map(PathBuf::as_path));
        command
            .stdin(if self.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        let mut child = self.spawn(&mut command)?;
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id as i32)));

        let mut stdout = Vec::new();
        let mut stderr = Vec::new();
        let mut flood = false;
        let stop = tokio::sync::Notify::new();
        let watch = Mutex::new(watch);
        let show = |stream, piece: &[u8]| {
            let mut watch = watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if watch(stream, piece) == OutputWatch::Stop {
                stop.notify_one();
            }
        };
        let show = &show;
        let input = self.stdin.take().zip(child.stdin.take());
        let pipes = {
            let (out, err) = (child.stdout.take(), child.stderr.take());
            let (stdout, stderr, flood) = (&mut stdout, &mut stderr, &mut flood);
            async move {
                let feed = async {
                    if let Some((bytes, mut pipe)) = input {
                        // A program that does not want its input says so by its exit status, not by this broken pipe.
                        let _ = pipe.write_all(&bytes).await;
                    }
                };
                let mut cut = false;
                tokio::join!(
                    feed,
                    collect(out, stdout, Keep::Head, flood, |piece| show(Stream::Stdout, piece)),
                    collect(err, stderr, Keep::Tail, &mut cut, |piece| show(Stream::Stderr, piece)),
                );
            }
        };
        let waited = {
            tokio::pin!(pipes);
            let mut drained = false;
            let waited = timeout_at(ends, async {
                loop {
                    tokio::select! {
                        status = child.wait() => break status,
                        () = &mut pipes, if !drained => drained = true,
                        () = stop.notified() => group.kill(),
                    }
                }
            })
            .await;
            if waited.is_err() {
                group.kill();
            } else if !drained {
                let _ = timeout(LINGER, &mut pipes).await;
            }
            waited
        };
        let stderr_tail = self.tail_text(&stderr);
        match waited {
            Err(_) => {
                // Reaps it; the signal is on its way.
                let _ = timeout(LINGER, child.wait()).await;
                group.forget();
                let seconds = self.deadline.as_secs();
                Err(CommandError::Deadline { program: self.name(), seconds, stdout, stderr_tail })
            }
            Ok(Err(source)) => Err(CommandError::Io { program: self.name(), source }),
            Ok(Ok(_)) if flood => Err(CommandError::Flood { program: self.name() }),
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

    fn tail_text(&self, stderr: &[u8]) -> String {
        let mut text = String::from_utf8_lossy(stderr).trim().to_owned();
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

enum Keep {
    Head,
    Tail,
}

/// Reads to the end whatever comes, so that the writer never blocks, and keeps a bounded part of it.
async fn collect(
    from: Option<impl AsyncRead + Unpin>,
    into: &mut Vec<u8>,
    keep: Keep,
    overflow: &mut bool,
    show: impl Fn(&[u8]),
) {
    let Some(mut from) = from else { return };
    let mut chunk = [0u8; 8192];
    while let Ok(n @ 1..) = from.read(&mut chunk).await {
        show(&chunk[..n]);
        match keep {
            Keep::Head => {
                let room = STDOUT_LIMIT.saturating_sub(into.len());
                *overflow |= n > room;
                into.extend_from_slice(&chunk[..n.min(room)]);
            }
            Keep::Tail => {
                into.extend_from_slice(&chunk[..n]);
                let excess = into.len().saturating_sub(STDERR_TAIL);
                into.drain(..excess);
            }
        }
    }
}

/// Where a program is: as given when that is a path, else the first executable file of that name on `PATH`.
pub fn find_program(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return is_executable(program).then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH")?;
    // Homebrew's directories are missing from the PATH that launchd gives a service.
    let usual = ["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|p| is_executable(p))
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
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
    async fn input_that_nobody_reads_is_no_error() {
        let out = sh("exit 0", SOON).stdin(vec![0; 1 << 20]).run().await.unwrap();
        assert!(out.status.success());
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
