//! Which process is an instance's. It is no child of this process, so it is known only from files and the kernel. It is, in this
//! order:
//!
//! 1. the supervisor: the holder of the lock in the instance's directory, if it runs as our user;
//! 2. the hypervisor that the supervisor recorded, by its pid and start time;
//! 3. a process of our user that was started with this instance's API socket and has open files in the instance's directory.
//!
//! The supervisor ends after its hypervisor, and a hypervisor is killed with its supervisor. So the second and third are for the
//! moment in between, and for an instance whose directory was removed.

use std::{io, time::Duration};

use tokio::time::timeout;

use super::{paths::VmmPaths, supervisor::path_option};
use crate::{
    domain::{Code, InstanceName},
    drivers::{
        DriverError, ErrorKind, Result, failure,
        lock::{self, LockHolder},
        process::{self, CommandLine, Process},
        record,
    },
};

#[derive(Debug)]
pub enum VmmPresence {
    Nothing,
    /// It runs, until this process has ended; another one may follow it for a moment.
    Ours(Process),
    /// Another user's process holds the lock.
    Stranger(i32),
}

/// How long a hypervisor may neither answer nor end.
pub const SETTLE: Duration = Duration::from_secs(10);
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

pub async fn presence(paths: &VmmPaths) -> Result<VmmPresence> {
    find(paths).await.map_err(|error| failure::unseen(error, "the instance's process"))
}

/// The running process. If another user's process holds the lock, neither waiting nor killing helps.
pub async fn running(paths: &VmmPaths, name: &InstanceName) -> Result<Option<Process>> {
    match presence(paths).await? {
        VmmPresence::Nothing => Ok(None),
        VmmPresence::Ours(process) => Ok(Some(process)),
        VmmPresence::Stranger(pid) => {
            let summary =
                format!("process {pid} of another user holds {} of {name}", paths.supervisor_lock().display());
            Err(DriverError::new(ErrorKind::Permanent, Code::HostUnavailable, summary))
        }
    }
}

/// The recorded hypervisor, if it runs.
pub async fn hypervisor(paths: &VmmPaths) -> Result<Option<Process>> {
    record::find(&paths.process()).await.map_err(|error| failure::unseen(error, "the hypervisor's process"))
}

async fn find(paths: &VmmPaths) -> io::Result<VmmPresence> {
    find_among(paths, None).await
}

/// Like `presence`, with a list of processes.
pub async fn find_among(paths: &VmmPaths, processes: Option<&[(i32, CommandLine)]>) -> io::Result<VmmPresence> {
    match lock::holder(&paths.supervisor_lock())? {
        LockHolder::Process(pid) => match Process::find(pid).await? {
            Some(process) if process.is_own() => return Ok(VmmPresence::Ours(process)),
            Some(_) => return Ok(VmmPresence::Stranger(pid)),
            // It has ended meanwhile.
            None => {}
        },
        LockHolder::Unknown => {
            let what = format!("a process that cannot be seen from here holds {}", paths.supervisor_lock().display());
            return Err(io::Error::other(what));
        }
        LockHolder::Free => {}
    }
    if let Some(process) = record::find(&paths.process()).await? {
        return Ok(VmmPresence::Ours(process));
    }
    let found = match processes {
        Some(processes) => orphan(paths, processes).await?,
        None => orphan(paths, &process::all().await?).await?,
    };
    Ok(found.map_or(VmmPresence::Nothing, VmmPresence::Ours))
}

/// A hypervisor of this instance without a record. A command line alone is no proof, because any user may run a process that
/// shows the same.
async fn orphan(paths: &VmmPaths, processes: &[(i32, CommandLine)]) -> io::Result<Option<Process>> {
    let socket = path_option(&paths.api());
    let Some(socket) = socket.to_str() else { return Ok(None) };
    let given = |line: &CommandLine| line.has_option(API_SOCKET, socket);
    for (pid, line) in processes {
        if !given(line) {
            continue;
        }
        let Some(process) = Process::find(*pid).await? else { continue };
        // The pid may have been reused.
        if process.is_own()
            && process.command_line().await?.is_some_and(|line| given(&line))
            && process.has_open_file_in(&paths.dir).await?
        {
            return Ok(Some(process));
        }
    }
    Ok(None)
}

/// The option that names the API's socket.
pub const API_SOCKET: &str = "--api-socket";

/// Returns once the process has ended, or it is time to look again.
pub async fn pause(process: &Process) {
    let _ = timeout(LOOK_AGAIN, process.ended()).await;
}
