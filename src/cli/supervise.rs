//! `mayfly supervise PARENT -- PROGRAM …`: runs a program, and ends it when the service that started it ends.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
};

use rustix::process::{Pid, Signal, getpid, kill_process};

use super::exit;
use crate::platform::process::{self, CANNOT_RUN, CANNOT_SUPERVISE, NOT_FOUND};

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
    match process::supervise(parent, program, args) {
        Ok(status) => pass_on(status),
        Err(error) => {
            eprintln!("{CANNOT_SUPERVISE}{}: {error}", program.display());
            if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
        }
    }
}

/// Exits in the same way as the program.
fn pass_on(status: ExitStatus) -> u8 {
    if let Some(signal) = status.signal().and_then(Signal::from_named_raw) {
        // A core dump, if wanted, is the program's.
        let _ = process::disable_core_dumps();
        let _ = kill_process(getpid(), signal);
    }
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILURE)
}
