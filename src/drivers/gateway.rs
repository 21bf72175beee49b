//! The gateway of an instance's guest: a process of Mayfly's own program, in its own session, that lives as long as
//! the hypervisor. The kernel's lock on its lock file identifies it.
//!
//! An instance that an earlier version started has none: its QEMU has the guest's network itself.
//!
//! For drivers whose hypervisor passes the guest's frames through a socket. They share the files, in the instance's
//! directory:
//!
//! ```text
//!     net.sock                  the guest's network card; its gateway connects to it
//!     gateway.json, .lock, .log what the gateway is started with, its lock while it lives, its log
//!     ssh.sock                  the guest's SSH port, through the gateway
//! ```

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{process::Child, time::timeout};

use super::{
    DriverError, ErrorKind, GuestNetwork, Result, failure, last_resort,
    lock::{self, LockHolder},
    process::Process,
};
use crate::{
    domain::{
        Code, InstanceName,
        gateway::{GatewaySpec, LogLimit},
    },
    platform::{clock, files as platform_files, process::Command},
};

/// It starts within milliseconds; longer on a host that swaps.
const START: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Pause before a gateway that ended is started again.
const START_AGAIN: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// After this long, an end is no longer counted as a repeated one.
const LASTED: Duration = Duration::from_secs(60);
/// A gateway that has not ended this long after its QEMU hangs.
const END: Duration = Duration::from_secs(2);
/// Limit of its log that is read when it did not start, in bytes.
const WORDS: u64 = 4 << 10;

/// Size on disk, in bytes, at which the log of a gateway, or of a hypervisor, is cut.
pub const MESSAGES_LIMIT: u64 = 1 << 20;

/// The files of a gateway.
#[derive(Clone, Debug)]
pub struct GatewayFiles {
    dir: PathBuf,
    /// The directory of a later attempt has a longer name, so its sockets have shorter ones.
    short: bool,
}

impl GatewayFiles {
    /// In the directory of an instance, which is named after it.
    pub fn of(dir: &Path) -> Self {
        let name = dir.file_name().and_then(|name| InstanceName::read(name.to_str()?));
        Self { dir: dir.to_owned(), short: name.is_some_and(|name| name.is_retry()) }
    }

    /// The name of a socket in this directory: `first`, or `later` in that of a later attempt.
    pub fn socket(&self, first: &str, later: &str) -> PathBuf {
        self.dir.join(if self.short { later } else { first })
    }

    /// The guest's network: the hypervisor's side listens, and the gateway connects.
    pub fn link(&self) -> PathBuf {
        self.socket("net.sock", "n.sock")
    }

    /// Connections to it are connections to the guest's SSH port.
    pub fn ssh(&self) -> PathBuf {
        self.socket("ssh.sock", "s.sock")
    }

    /// What the gateway is started with.
    pub fn spec(&self) -> PathBuf {
        self.dir.join("gateway.json")
    }

    /// Locked by the gateway while it lives.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("gateway.lock")
    }

    /// The gateway's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("gateway.log")
    }
}

/// Whether the instance has a gateway.
pub fn is_used(files: &GatewayFiles) -> Result<bool> {
    failure::exists(&files.spec()).map_err(|error| failure::unseen(error, "the guest's gateway"))
}

/// Writes what the gateway is started with. `logs`: those that the guest can make grow.
pub fn prepare(network: &GuestNetwork, logs: Vec<LogLimit>, files: &GatewayFiles) -> Result<()> {
    let spec = GatewaySpec {
        policy: network.policy.clone(),
        link: files.link(),
        guest_api: network.guest_api.clone(),
        ssh: files.ssh(),
        logs,
        lock: files.lock(),
    };
    serde_json::to_vec(&spec)
        .map_err(io::Error::other)
        .and_then(|spec| platform_files::replace_unsynced(&files.spec(), &spec))
        .map_err(|error| failure::io(error, Code::BootFailed, "the guest's network cannot be described"))
}

/// Starts the gateway, unless it runs. Returns when it has the link to QEMU, which must run.
pub async fn ensure(program: &Path, files: &GatewayFiles) -> Result<()> {
    let patience = clock::monotonic() + START;
    let mut launched: Option<Child> = None;
    loop {
        if let Some(process) = find(files).await? {
            if is_ready(files, &process) {
                reap_later(launched);
                return Ok(());
            }
            let _ = timeout(LOOK_AGAIN, process.ended()).await;
        } else if let Some(child) = &mut launched {
            if let Ok(Ok(status)) = timeout(LOOK_AGAIN, child.wait()).await {
                // A concurrent start may have been faster.
                if find(files).await?.is_none() {
                    return Err(refused(&format!("it ended with {status}"), files));
                }
            }
        } else {
            launched = Some(launch(program, files)?);
        }
        if clock::monotonic() > patience {
            reap_later(launched);
            return Err(refused(&format!("it was not ready after {} s", START.as_secs()), files));
        }
    }
}

fn launch(program: &Path, files: &GatewayFiles) -> Result<Child> {
    let failed = |error| failure::io(error, Code::BootFailed, "the guest's gateway cannot be started");
    let log = platform_files::private().create(true).append(true).open(files.log()).map_err(failed)?;
    // A gateway keeps its own log below the limit, unless it ends at once. There is no limit to how often it is started.
    if log.metadata().map_err(failed)?.len() > MESSAGES_LIMIT {
        log.set_len(0).map_err(failed)?;
    }
    Command::new(program, START)
        .args(["detach", "--"])
        .arg(program)
        .arg("guest-gateway")
        .arg(files.spec())
        .start(log.try_clone().map_err(failed)?, log)
        .map_err(|error| failure::command(error, Code::BootFailed))
}

/// Whether this holder of the lock has written its pid, as it does when the guest's network is up.
fn is_ready(files: &GatewayFiles, process: &Process) -> bool {
    std::fs::read_to_string(files.lock()).is_ok_and(|pid| pid.trim() == process.pid().to_string())
}

/// Without a task that waits for it, an ended process stays a zombie.
fn reap_later(launched: Option<Child>) {
    if let Some(mut child) = launched {
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
    }
}

fn refused(why: &str, files: &GatewayFiles) -> DriverError {
    let log = platform_files::read_tail(&files.log(), WORDS).ok().flatten().unwrap_or_default();
    let tail = String::from_utf8_lossy(&log).trim().to_owned();
    let last = tail.lines().last().unwrap_or_default();
    let summary = format!("the guest's gateway does not run: {why}: {last}");
    DriverError::new(ErrorKind::Retry, Code::BootFailed, summary).tail(tail)
}

/// Starts the gateway again whenever it has ended. For a running instance.
pub async fn keep(program: &Path, files: &GatewayFiles, name: &InstanceName) -> std::convert::Infallible {
    let mut pause = START_AGAIN;
    loop {
        match is_used(files) {
            Ok(true) => {}
            Ok(false) => return std::future::pending().await,
            Err(error) => tracing::warn!(%error, instance = %name, "cannot see the guest's gateway"),
        }
        match find(files).await {
            Ok(Some(process)) => {
                let since = clock::monotonic();
                process.ended().await;
                if clock::elapsed(since) > LASTED {
                    pause = START_AGAIN;
                }
                // When QEMU has ended too, this future is dropped.
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            Ok(None) => {
                tracing::warn!(instance = %name, "the guest's gateway has ended; starting another one");
                if let Err(error) = ensure(program, files).await {
                    tracing::warn!(%error, instance = %name, "the guest has no network");
                }
            }
            Err(error) => tracing::warn!(%error, instance = %name, "cannot see the guest's gateway"),
        }
        // A guest that makes its gateway end again and again costs less and less.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Returns when the gateway has ended, as it does after QEMU.
pub async fn end(files: &GatewayFiles, name: &InstanceName) -> Result<()> {
    match find(files).await? {
        Some(process) if timeout(END, process.ended()).await.is_err() => last_resort::kill(&process, name).await,
        _ => Ok(()),
    }
}

async fn find(files: &GatewayFiles) -> Result<Option<Process>> {
    let unseen = |error| failure::unseen(error, "the guest's gateway");
    match lock::holder(&files.lock()).map_err(unseen)? {
        LockHolder::Free => Ok(None),
        LockHolder::Process(pid) => Ok(Process::find(pid).await.map_err(unseen)?.filter(Process::is_own)),
        LockHolder::Unknown => Err(unseen(io::Error::other("a process that cannot be seen from here holds its lock"))),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead as _, BufReader},
        os::unix::fs::PermissionsExt as _,
    };

    use super::*;
    use crate::domain::{NetworkMode, NetworkPolicy, VmId};

    /// A gateway that ends at once, each time it is started, after it wrote a lot to its log.
    #[tokio::test]
    async fn starts_of_a_gateway_that_ends_again_and_again_become_rarer_and_its_log_is_bounded() {
        const STARTS: usize = 4;
        let dir = tempfile::tempdir().unwrap();
        let name = VmId::mint().instance();
        let files = GatewayFiles::of(&dir.path().join(name.as_str()));
        std::fs::create_dir(&files.dir).unwrap();
        let policy = NetworkPolicy { mode: NetworkMode::Isolated, allow: Vec::new() };
        prepare(&GuestNetwork { policy, guest_api: dir.path().join("api") }, Vec::new(), &files).unwrap();
        let starts = dir.path().join("starts");
        assert!(Command::new("mkfifo", START).arg(&starts).run().await.unwrap().status.success());
        let program = dir.path().join("gateway");
        let text = format!("#!/bin/sh\nyes noise | head -c 600000 >&2\necho started >'{}'\n", starts.display());
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Open for both, so that neither side waits for the other.
        let starts = std::fs::File::options().read(true).write(true).open(&starts).unwrap();
        let counted = tokio::task::spawn_blocking(move || {
            BufReader::new(starts).lines().take(STARTS).map(|_| clock::monotonic()).collect::<Vec<_>>()
        });
        let at = tokio::select! {
            at = counted => at.unwrap(),
            never = keep(&program, &files, &name) => match never {},
        };
        for (n, pair) in at.windows(2).enumerate() {
            assert!(pair[1] - pair[0] >= START_AGAIN * 2_u32.pow(n as u32) - LOOK_AGAIN, "start {n}: {at:?}");
        }
        let log = std::fs::metadata(files.log()).unwrap().len();
        assert!(log > 0 && log <= MESSAGES_LIMIT + 600_000, "{log} bytes");
    }
}
