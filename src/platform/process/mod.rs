//! Starts child processes; no other module does.
//!
//! A command has a deadline, and its output is captured and bounded. It gets a few environment variables only, because the
//! service's environment may hold tokens and cloud credentials. Arguments are visible to every user of the
//! host, so a secret goes in through standard input or a file, never through them.
//!
//! When a command is dropped, or its deadline passes, its whole process group is killed. A process that created its own
//! session (a daemonized hypervisor) is not in that group and continues to run, as do processes started with
//! [`Command::start`]. Once [`set_supervisor`] was called, commands also die with this process, however that ends.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::process::CommandExt,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

mod command;
mod find;
mod supervise;

pub use command::{Command, CommandError, OutputWatch, ProgramOutput, Stream};
pub use find::{find_program, is_executable, search_path};
pub use supervise::{CANNOT_RUN, CANNOT_SUPERVISE, NOT_FOUND, set_supervisor, supervise};

/// Makes this process the leader of a new session (`setsid`).
pub fn new_session() -> io::Result<()> {
    rustix::process::setsid()?;
    Ok(())
}

/// Most file descriptors of a hypervisor. With a disk, its sockets and some for each processor it has far fewer.
const HYPERVISOR_DESCRIPTORS: u64 = 4096;

/// Disables core dumps of this process and its children: a dump would hold secrets, or the memory of a guest.
pub fn disable_core_dumps() -> io::Result<()> {
    Ok(setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?)
}

/// Limits what this process, and the hypervisor that takes its place, may use.
pub fn limit_hypervisor() -> io::Result<()> {
    disable_core_dumps()?;
    let now = getrlimit(Resource::Nofile);
    let bounded =
        |limit: Option<u64>| Some(limit.map_or(HYPERVISOR_DESCRIPTORS, |most| most.min(HYPERVISOR_DESCRIPTORS)));
    setrlimit(Resource::Nofile, Rlimit { current: bounded(now.current), maximum: bounded(now.maximum) })?;
    Ok(())
}

/// Replaces this process by the program (`exec`), with the environment less one variable. Returns only on failure.
#[expect(clippy::disallowed_methods, reason = "no process is started")]
pub fn become_program(program: &OsStr, args: &[OsString], without: &str) -> io::Error {
    std::process::Command::new(program).args(args).env_remove(without).exec()
}
