//! The supervisor of one hypervisor: `mayfly guest-hypervisor FILE`, in the namespace that the hypervisor is to run in.
//!
//! It owns: the tap, the hypervisor's process and its events. The kernel's lock on its lock file identifies it. It lives as long as
//! the hypervisor, also while the service does not, so the guest's end is recorded whenever it happens. A hypervisor that goes on
//! without its guest (after a reset, a panic, a pause or a shutdown by another program) is ended here at once: a guest that reset
//! itself must not run its job again.
//!
//! If the supervisor is killed, the kernel kills the hypervisor.

use std::{
    fs::File,
    io::{self, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::ExitStatusExt as _,
    },
    path::PathBuf,
    process::ExitStatus,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::Instant};

use super::{
    events::{EventMeaning, EventReader, VmmEvent},
    namespace::CONFINE,
};
use crate::{
    domain::event::GoneCause,
    drivers::{process::Process, record},
    platform::{clock, files, process::Command},
};

/// After its guest's shutdown, a hypervisor that ends at all does so within this time.
const LEAVE: Duration = Duration::from_secs(5);
/// Size at which no further events are recorded, in bytes. Those of a guest's start come first.
const EVENTS_LIMIT: u64 = 256 << 10;
/// For starting a program that lives long.
const START: Duration = Duration::from_secs(10);

/// What a supervisor is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupervisorSpec {
    /// The hypervisor.
    pub program: PathBuf,
    pub api: PathBuf,
    /// The guest's network: the supervisor listens, and the gateway connects.
    pub link: PathBuf,
    pub lock: PathBuf,
    pub process: PathBuf,
    pub events: PathBuf,
    pub ended: PathBuf,
}

/// How a hypervisor ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmEnd {
    /// Why the supervisor ended it.
    pub cause: Option<GoneCause>,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

/// Runs the hypervisor to its end, and records how it ended.
pub async fn run(spec: &SupervisorSpec) -> io::Result<()> {
    files::ignore_not_found(std::fs::remove_file(&spec.ended))?;
    let (events, writer) = io::pipe()?;
    let events = pipe::Receiver::from_owned_fd(OwnedFd::from(events))?;
    let [confine, args @ ..] = CONFINE;
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let mut child = Command::new(confine, START)
        .args(args)
        .arg(&spec.program)
        .arg("--api-socket")
        .arg(path_option(&spec.api))
        // Standard output: the other end of the pipe.
        .args(["--event-monitor", "fd=1"])
        .start(File::from(OwnedFd::from(writer)), stderr)
        .map_err(io::Error::other)?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| io::Error::other("it ended at once"))?;
    let process = Process::find(pid).await?;
    if let Some(process) = &process {
        record::write(&spec.process, &process.id())?;
    }
    let mut log = EventLog::create(spec)?;
    let (status, cause) = {
        let mut follow = std::pin::pin!(follow(events, &mut log));
        let mut cause = None;
        let status = loop {
            tokio::select! {
                status = child.wait() => break status?,
                found = &mut follow, if cause.is_none() => {
                    cause = Some(found);
                    child.start_kill()?;
                }
            }
        };
        (status, cause)
    };
    files::replace_unsynced(&spec.ended, &serde_json::to_vec(&end(status, cause)).map_err(io::Error::other)?)
}

/// `path=…`, as the hypervisor parses it.
pub fn path_option(path: &std::path::Path) -> std::ffi::OsString {
    let mut option = std::ffi::OsString::from("path=");
    option.push(path);
    option
}

fn end(status: ExitStatus, cause: Option<GoneCause>) -> VmmEnd {
    VmmEnd { cause, code: status.code(), signal: status.signal() }
}

/// Reads events. Returns the cause when the hypervisor has to be ended; never, if it ends by itself.
async fn follow(mut events: pipe::Receiver, log: &mut EventLog) -> GoneCause {
    let mut reader = EventReader::default();
    let mut buffer = vec![0; 16 << 10];
    let mut leave_by: Option<Instant> = None;
    loop {
        let read = async {
            match leave_by {
                Some(at) => tokio::time::timeout_at(at, events.read(&mut buffer)).await.ok(),
                None => Some(events.read(&mut buffer).await),
            }
        };
        let bytes = match read.await {
            // It was shut down, and does not end.
            None => return GoneCause::HostStop,
            // It has closed its side, so it is about to end.
            Some(Ok(0) | Err(_)) => return std::future::pending().await,
            Some(Ok(length)) => &buffer[..length],
        };
        let found = match reader.read(bytes) {
            Ok(found) => found,
            Err(why) => {
                tracing::warn!("the hypervisor's events are not understood, and ignored from here on: {why}");
                return drain(events, buffer).await;
            }
        };
        for event in found {
            log.append(&event);
            match event.meaning() {
                EventMeaning::Rebooting => return GoneCause::GuestReset,
                EventMeaning::Panicked => return GoneCause::GuestPanic,
                EventMeaning::Paused => return GoneCause::HostPause,
                EventMeaning::ShutDown => leave_by = Some(clock::monotonic() + LEAVE),
                EventMeaning::Other => {}
            }
        }
    }
}

/// Nothing may keep the hypervisor from writing.
async fn drain(mut events: pipe::Receiver, mut buffer: Vec<u8>) -> GoneCause {
    while matches!(events.read(&mut buffer).await, Ok(1..)) {}
    std::future::pending().await
}

struct EventLog {
    file: File,
    written: u64,
}

impl EventLog {
    fn create(spec: &SupervisorSpec) -> io::Result<Self> {
        let file = files::private().create(true).write(true).truncate(true).open(&spec.events)?;
        Ok(Self { file, written: 0 })
    }

    /// For people, and to know later whether the guest was booted.
    fn append(&mut self, event: &VmmEvent) {
        if self.written > EVENTS_LIMIT {
            return;
        }
        let Ok(mut line) = serde_json::to_vec(event) else { return };
        line.push(b'\n');
        self.written += line.len() as u64;
        if let Err(error) = self.file.write_all(&line) {
            tracing::debug!(%error, "cannot record an event");
        }
    }
}
