//! The process beside each program that kills it when the service has ended.
//!
//! A command that hung could continue after the next start of the service and act on newer instances. Only Linux can kill a
//! child when its parent dies, and it does so when the parent's thread ends, not its process. So `mayfly supervise` runs beside
//! each command that is run, except those that are `unsupervised`. It is in the command's process group, which the service made,
//! and kills that group when the service has ended.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::OnceLock,
    time::Duration,
};

use rustix::process::{Pid, Signal, getpgrp, getpid, getppid, kill_process_group};

/// How `mayfly supervise` says that it could not run a program, and with which status. A shell uses the same two.
pub const CANNOT_SUPERVISE: &str = "mayfly supervise: cannot run ";
pub const CANNOT_RUN: u8 = 126;
pub const NOT_FOUND: u8 = 127;

/// What a program may do after the service has ended is bounded by this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

static SUPERVISOR: OnceLock<PathBuf> = OnceLock::new();

/// From now on, programs that are run do not outlive this process. `mayfly`: this program.
pub fn set_supervisor(mayfly: &Path) {
    let _ = SUPERVISOR.set(mayfly.to_owned());
}

pub(super) fn supervisor() -> Option<&'static Path> {
    SUPERVISOR.get().map(PathBuf::as_path)
}

/// Runs a program to its end. When `parent` ends before that, the program is killed and this process exits.
#[expect(clippy::disallowed_methods, reason = "this is the supervisor of all other commands")]
pub fn supervise(parent: Pid, program: &OsStr, args: &[OsString]) -> io::Result<ExitStatus> {
    if getppid() != Some(parent) {
        return Err(io::Error::other("the service has ended"));
    }
    let mut command = Command::new(program);
    command.args(args);
    let own_group = getpgrp() == getpid();
    if !own_group {
        // Another process leads this group, so the group must not be killed.
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let group = if own_group { Some(getpid()) } else { i32::try_from(child.id()).ok().and_then(Pid::from_raw) };
    std::thread::Builder::new().name("service".into()).spawn(move || {
        // An orphan gets another parent, and a parent's pid is not given away before that.
        while getppid() == Some(parent) {
            std::thread::sleep(LOOK_AGAIN);
        }
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
        std::process::exit(i32::from(CANNOT_RUN));
    })?;
    child.wait()
}
