//! `mayfly detach [--] PROGRAM …`: starts a new session and executes the program in it, with the same process id.
//!
//! Hypervisors that run in the foreground are started through this, so that neither the end of the service nor a
//! signal to its process group reaches the guests. Only the process itself can start its session, after the fork and
//! before the exec. The same holds for the record of its process id, which must exist before the program runs.

use std::{ffi::OsString, io, path::Path};

use super::exit;
use crate::{
    drivers::record,
    platform::process::{self, CANNOT_RUN, NOT_FOUND},
};

/// Returns only when it failed.
pub(super) fn run(command: &[OsString]) -> u8 {
    let command = if command.first().is_some_and(|first| first == "--") { &command[1..] } else { command };
    let [program, args @ ..] = command else {
        eprintln!("mayfly detach: which program is to be run?");
        return exit::USAGE;
    };
    if let Err(error) = process::new_session() {
        eprintln!("mayfly detach: cannot make a session: {error}");
        return CANNOT_RUN;
    }
    if let Err(error) = process::limit_hypervisor() {
        eprintln!("mayfly detach: cannot limit this process: {error}");
        return CANNOT_RUN;
    }
    if let Some(dir) = std::env::var_os(record::DIRECTORY)
        && let Err(error) = note(Path::new(&dir))
    {
        eprintln!("mayfly detach: cannot note this process in {}: {error}", dir.display());
        return CANNOT_RUN;
    }
    let error = process::become_program(program, args, record::DIRECTORY);
    eprintln!("mayfly detach: cannot run {}: {error}", program.display());
    if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN }
}

fn note(dir: &Path) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(record::write_own(dir))
}
