//! A running QEMU: finding its process, QMP requests, and its end.
//!
//! It is no child of this process, so its state is known only from files and the kernel. An instance's process is, in
//! this order:
//!
//! 1. the holder of the lock on the pid file in the instance's directory, if it runs as our user;
//! 2. the process that was recorded as that before, by its pid and start time, even if the pid file is gone;
//! 3. a process of our user that was started with this pid file and has open files in the instance's directory.
//!
//! A command line alone is never proof: any user may run a process that shows the same. Alone, it is used
//! only while a QEMU has no pid file yet, as after an interrupted start: a young process of our user with this pid file
//! in its command line is waited for.

use std::{
    io::{self, Read as _},
    time::Duration,
};

use serde_json::Value;
use tokio::time::timeout;

use super::{
    paths::{LATEST_EVENTS, QemuPaths, WATCH_BEGINNING},
    qmp::{self, QmpClient, QmpError},
    usernet,
};
use crate::{
    domain::{Code, InstanceName, event::GoneCause},
    drivers::{
        DriverError, ErrorKind, failure,
        lock::{self, LockHolder},
        process::{self, CommandLine, Process},
        record,
    },
    platform::files,
};

/// QMP answers in milliseconds, or it hangs.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How often the processes are listed while matching ones start and end.
const SCANS: u32 = 10;
/// A QEMU has its pid file within milliseconds, before any slow step. An older process without one is no starting
/// QEMU of ours.
const STARTING: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub enum QemuPresence {
    Nothing,
    Ours(Process),
    /// A process of our user that was started with this instance's pid file moments ago and does not hold it yet. It
    /// will soon, or it ends.
    Starting(Process),
    /// Another user's process holds the pid file.
    Stranger(i32),
}

/// The process of this instance. An error: nothing is known.
pub async fn find(paths: &QemuPaths) -> io::Result<QemuPresence> {
    for _ in 0..SCANS {
        match certain(paths).await? {
            // A process that an earlier version started forks twice, and its child may have started after the list was
            // made.
            QemuPresence::Nothing => match suspected(paths, &process::all().await?).await? {
                Some(found) => return Ok(found),
                None => continue,
            },
            found => return Ok(found),
        }
    }
    Err(io::Error::other("processes that may be this instance's come and go"))
}

/// Like `find`, with the driver's error.
pub async fn presence(paths: &QemuPaths) -> Result<QemuPresence, DriverError> {
    find(paths).await.map_err(|error| failure::unseen(error, "the instance's process"))
}

/// The running process, after waiting for one that is starting or ending. If another user's process holds the pid
/// file, neither waiting nor killing helps.
pub async fn running(paths: &QemuPaths, name: &InstanceName) -> Result<Option<Process>, DriverError> {
    loop {
        match presence(paths).await? {
            QemuPresence::Nothing => return Ok(None),
            QemuPresence::Ours(process) => return Ok(Some(process)),
            // After a while it no longer counts as starting.
            QemuPresence::Starting(process) => drop(timeout(LOOK_AGAIN, process.ended()).await),
            QemuPresence::Stranger(pid) => {
                let summary = format!("process {pid} of another user holds {} of {name}", paths.pid().display());
                return Err(DriverError::new(ErrorKind::Permanent, Code::HostUnavailable, summary));
            }
        }
    }
}

/// Like `find`, with a list of processes.
pub async fn find_among(paths: &QemuPaths, processes: &[(i32, CommandLine)]) -> io::Result<QemuPresence> {
    match certain(paths).await? {
        QemuPresence::Nothing => Ok(suspected(paths, processes).await?.unwrap_or(QemuPresence::Nothing)),
        found => Ok(found),
    }
}

/// Uses the kernel's lock and the recorded process.
async fn certain(paths: &QemuPaths) -> io::Result<QemuPresence> {
    match lock::holder(&paths.pid())? {
        LockHolder::Process(pid) => match Process::find(pid).await? {
            Some(process) if process.is_own() => {
                note(paths, &process)?;
                return Ok(QemuPresence::Ours(process));
            }
            Some(_) => return Ok(QemuPresence::Stranger(pid)),
            // It has ended meanwhile.
            None => {}
        },
        LockHolder::Unknown => {
            let what = format!("a process that cannot be seen from here holds {}", paths.pid().display());
            return Err(io::Error::other(what));
        }
        LockHolder::Free => {}
    }
    Ok(record::find(&paths.process()).await?.map_or(QemuPresence::Nothing, QemuPresence::Ours))
}

/// Records the process, unless it is recorded already.
fn note(paths: &QemuPaths, process: &Process) -> io::Result<()> {
    if record::read(&paths.process())?.as_ref() == Some(&process.id()) {
        return Ok(());
    }
    if let Err(error) = record::write(&paths.process(), &process.id()) {
        // The lock on the pid file identifies it as well, as long as that file exists.
        tracing::debug!(%error, dir = %paths.dir.display(), "cannot record the process of an instance");
    }
    Ok(())
}

/// A process of ours that was started with this pid file. `None`: candidates ended during the search.
async fn suspected(paths: &QemuPaths, processes: &[(i32, CommandLine)]) -> io::Result<Option<QemuPresence>> {
    let mut vanished = false;
    for (pid, line) in processes {
        if !given(line, paths) {
            continue;
        }
        let Some(process) = Process::find(*pid).await? else {
            vanished = true;
            continue;
        };
        // The pid may have been reused.
        if !process.is_own() || !process.command_line().await?.is_some_and(|line| given(&line, paths)) {
            continue;
        }
        if process.has_open_file_in(&paths.dir).await? {
            return Ok(Some(QemuPresence::Ours(process)));
        }
        if process.age() < STARTING {
            return Ok(Some(QemuPresence::Starting(process)));
        }
        vanished |= !process.is_running().await?;
    }
    Ok((!vanished).then_some(QemuPresence::Nothing))
}

fn given(line: &CommandLine, paths: &QemuPaths) -> bool {
    paths.pid().to_str().is_some_and(|file| line.has_option("-pidfile", file))
}

/// The state of the guest, as QEMU reports it.
#[derive(Debug, PartialEq, Eq)]
pub struct GuestStatus {
    /// `running`, `paused`, `internal-error`, …
    pub state: String,
    pub ssh_port: Option<u16>,
}

pub async fn status(paths: &QemuPaths) -> Result<GuestStatus, QmpError> {
    let mut qmp = QmpClient::connect(&paths.qmp(), PATIENCE).await?;
    let status = qmp.execute("query-status", None).await?;
    let state = status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ssh_port = usernet::forwarded_port(&qmp.human("info usernet").await?, 22);
    Ok(GuestStatus { state, ssh_port })
}

/// Whether the guest behind this socket is this one. A second QEMU takes over a socket's path silently.
pub async fn answers_as(paths: &QemuPaths, name: &InstanceName) -> Result<bool, QmpError> {
    let mut qmp = QmpClient::connect(&paths.qmp(), PATIENCE).await?;
    let reply = qmp.execute("query-uuid", None).await?;
    let uuid = reply.get("UUID").and_then(Value::as_str).unwrap_or_default();
    Ok(name.vm_id().to_string() == uuid)
}

/// Presses the power button. The guest may ignore it.
pub async fn power_down(paths: &QemuPaths) -> Result<(), QmpError> {
    QmpClient::connect(&paths.qmp(), PATIENCE).await?.execute("system_powerdown", None).await.map(|_| ())
}

pub async fn quit(paths: &QemuPaths) -> Result<(), QmpError> {
    match QmpClient::connect(&paths.qmp(), PATIENCE).await?.execute("quit", None).await {
        // It may end before its reply is sent.
        Ok(_) | Err(QmpError::Closed | QmpError::Io(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Resumes a paused guest. QEMU repeats the failed request.
pub async fn resume(paths: &QemuPaths) -> Result<(), QmpError> {
    QmpClient::connect(&paths.qmp(), PATIENCE).await?.execute("cont", None).await.map(|_| ())
}

/// Opens the watch socket, once in the life of a QEMU. From then on QEMU writes its events to the socket's log, with
/// or without a connected client. It is never opened again: between a client's connection and its first command QEMU
/// reports no events, and the guest's end might be missed.
pub async fn arm_watch(paths: &QemuPaths) -> Result<(), QmpError> {
    if is_armed(paths)? {
        return Ok(());
    }
    QmpClient::connect(&paths.watch(), PATIENCE).await.map(|_| ())
}

/// Whether the log has the reply to a command. QEMU empties the log when it starts, and the first reply is that to
/// the command that enables events.
fn is_armed(paths: &QemuPaths) -> io::Result<bool> {
    let mut beginning = Vec::new();
    match std::fs::File::open(paths.watch_log()) {
        Ok(log) => log.take(WATCH_BEGINNING).read_to_end(&mut beginning)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&beginning).lines().any(|line| line.starts_with("{\"return\"")))
}

/// Starts the guest's processors. Does nothing to a guest that runs or has run.
pub async fn let_run(paths: &QemuPaths) -> Result<(), QmpError> {
    let mut qmp = QmpClient::connect(&paths.qmp(), PATIENCE).await?;
    let status = qmp.execute("query-status", None).await?;
    if status.get("status").and_then(Value::as_str) == Some("prelaunch") {
        qmp.execute("cont", None).await?;
    }
    Ok(())
}

/// The cause of the latest end in the log of the watch socket.
pub fn recorded_cause(paths: &QemuPaths) -> io::Result<Option<GoneCause>> {
    let log = files::read_tail(&paths.watch_log(), LATEST_EVENTS)?;
    Ok(log.and_then(|log| qmp::last_cause(&String::from_utf8_lossy(&log))))
}
