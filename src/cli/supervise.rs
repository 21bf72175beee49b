//! `mayfly supervise PARENT -- PROGRAM …`: runs a program for as long as the service lives that asked for it.
//!
//! A program that the service started must not go on when the service is gone: a `tart delete` that hung may wake up when the
//! next start of the service has long moved on. The system ends the children of a process that dies on Linux only, and there
//! only by the thread that started them, so a small process of ours stays beside each program. It is in the program's process
//! group, which the service made, and kills that group when the service has ended.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Command, ExitStatus},
    time::Duration,
};

use rustix::process::{
    Pid, Resource, Rlimit, Signal, getpgrp, getpid, getppid, kill_process, kill_process_group, setrlimit,
};

use super::exit;
use crate::drivers::command::{CANNOT_RUN, CANNOT_SUPERVISE, NOT_FOUND};

/// What a program may do after the service has ended is bounded by this.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub(super) fn run(args: &[OsString]) -> u8 {
    let [parent, separator, program, args @ ..] = args else {
        eprintln!("mayfly supervise: which program is to be run, and for which process?");
        return exit::USAGE;
    };
    let parent = parent.to_str().and_then(|parent| parent.parse().ok()).and_then(Pid::from_raw);
    let Some(parent) = parent.filter(|_| separator == OsStr::new("--")) else {
        eprintln!("mayfly supervise: expected a process id and `--`");
        return exit::USAGE;
    };
    match supervise(parent, Command::new(program).args(args)) {
        Ok(status) => pass_on(status),
        Err(error) => {
            eprintln!("{CANNOT_SUPERVISE}{}: {error}", program.display());
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
        }
    }
}

fn supervise(parent: Pid, command: &mut Command) -> io::Result<ExitStatus> {
    if getppid() != Some(parent) {
        return Err(io::Error::other("the service has ended"));
    }
    if getpgrp() != getpid() {
        // The group would not be ours to kill.
        command.process_group(0);
    }
    let mut child = command.spawn()?;
    let group =
        if getpgrp() == getpid() { Some(getpid()) } else { i32::try_from(child.id()).ok().and_then(Pid::from_raw) };
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

/// Ends as the program did.
fn pass_on(status: ExitStatus) -> u8 {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        // The program has left its core where one was wanted.
        let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
        let _ = kill_process(getpid(), signal);
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILURE)
}
