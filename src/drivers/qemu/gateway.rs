//! The gateway of an instance's guest: a process of Mayfly's own program, in its own session, that lives as long as
//! QEMU. The kernel's lock on its lock file identifies it.
//!
//! An instance that an earlier version started has none: its QEMU has the guest's network itself.

use std::{io, path::Path, time::Duration};

use tokio::{process::Child, time::timeout};

use super::paths::{MESSAGES_LIMIT, QemuPaths};
use crate::{
    domain::{Code, InstanceName, gateway::GatewaySpec},
    drivers::{
        DriverError, ErrorKind, GuestNetwork, Result, failure, last_resort,
        lock::{self, LockHolder},
        process::Process,
    },
    platform::{clock, files, process::Command},
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

/// Whether the instance has a gateway.
pub fn is_used(paths: &QemuPaths) -> Result<bool> {
    failure::exists(&paths.gateway_spec()).map_err(|error| failure::unseen(error, "the guest's gateway"))
}

/// Writes what the gateway is started with.
pub fn prepare(console_limit: u64, network: &GuestNetwork, paths: &QemuPaths) -> io::Result<()> {
    let spec = GatewaySpec {
        policy: network.policy.clone(),
        link: paths.link(),
        guest_api: network.guest_api.clone(),
        ssh: paths.ssh(),
        logs: paths.log_limits(console_limit),
        lock: paths.gateway_lock(),
    };
    files::replace_unsynced(&paths.gateway_spec(), &serde_json::to_vec(&spec).map_err(io::Error::other)?)
}

/// Starts the gateway, unless it runs. Returns when it has the link to QEMU, which must run.
pub async fn ensure(program: &Path, paths: &QemuPaths) -> Result<()> {
    let patience = clock::monotonic() + START;
    let mut launched: Option<Child> = None;
    loop {
        if let Some(process) = find(paths).await? {
            if is_ready(paths, &process) {
                reap_later(launched);
                return Ok(());
            }
            let _ = timeout(LOOK_AGAIN, process.ended()).await;
        } else if let Some(child) = &mut launched {
            if let Ok(Ok(status)) = timeout(LOOK_AGAIN, child.wait()).await {
                // A concurrent start may have been faster.
                if find(paths).await?.is_none() {
                    return Err(refused(&format!("it ended with {status}"), paths));
                }
            }
        } else {
            launched = Some(launch(program, paths)?);
        }
        if clock::monotonic() > patience {
            reap_later(launched);
            return Err(refused(&format!("it was not ready after {} s", START.as_secs()), paths));
        }
    }
}

fn launch(program: &Path, paths: &QemuPaths) -> Result<Child> {
    let failed = |error| failure::io(error, Code::BootFailed, "the guest's gateway cannot be started");
    let log = files::private().create(true).append(true).open(paths.gateway_log()).map_err(failed)?;
    // A gateway keeps its own log below the limit, unless it ends at once. There is no limit to how often it is started.
    if log.metadata().map_err(failed)?.len() > MESSAGES_LIMIT {
        log.set_len(0).map_err(failed)?;
    }
    Command::new(program, START)
        .args(["detach", "--"])
        .arg(program)
        .arg("guest-gateway")
        .arg(paths.gateway_spec())
        .start(log.try_clone().map_err(failed)?, log)
        .map_err(|error| failure::command(error, Code::BootFailed))
}

/// Whether this holder of the lock has written its pid, as it does when the guest's network is up.
fn is_ready(paths: &QemuPaths, process: &Process) -> bool {
    std::fs::read_to_string(paths.gateway_lock()).is_ok_and(|pid| pid.trim() == process.pid().to_string())
}

/// Without a task that waits for it, an ended process stays a zombie.
fn reap_later(launched: Option<Child>) {
    if let Some(mut child) = launched {
        tokio::spawn(async move {
            let _ = child.wait().await;
        });
    }
}

fn refused(why: &str, paths: &QemuPaths) -> DriverError {
    let log = files::read_tail(&paths.gateway_log(), WORDS).ok().flatten().unwrap_or_default();
    let tail = String::from_utf8_lossy(&log).trim().to_owned();
    let last = tail.lines().last().unwrap_or_default();
    let summary = format!("the guest's gateway does not run: {why}: {last}");
    DriverError::new(ErrorKind::Retry, Code::BootFailed, summary).tail(tail)
}

/// Starts the gateway again whenever it has ended. For a running instance.
pub async fn keep(program: &Path, paths: &QemuPaths, name: &InstanceName) -> std::convert::Infallible {
    let mut pause = START_AGAIN;
    loop {
        match is_used(paths) {
            Ok(true) => {}
            Ok(false) => return std::future::pending().await,
            Err(error) => tracing::warn!(%error, instance = %name, "cannot see the guest's gateway"),
        }
        match find(paths).await {
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
                if let Err(error) = ensure(program, paths).await {
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
pub async fn end(paths: &QemuPaths, name: &InstanceName) -> Result<()> {
    match find(paths).await? {
        Some(process) if timeout(END, process.ended()).await.is_err() => last_resort::kill(&process, name).await,
        _ => Ok(()),
    }
}

async fn find(paths: &QemuPaths) -> Result<Option<Process>> {
    let unseen = |error| failure::unseen(error, "the guest's gateway");
    match lock::holder(&paths.gateway_lock()).map_err(unseen)? {
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
        let paths = QemuPaths::new(dir.path(), &name);
        std::fs::create_dir(&paths.dir).unwrap();
        let policy = NetworkPolicy { mode: NetworkMode::Isolated, allow: Vec::new() };
        prepare(1 << 20, &GuestNetwork { policy, guest_api: dir.path().join("api") }, &paths).unwrap();
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
            never = keep(&program, &paths, &name) => match never {},
        };
        for (n, pair) in at.windows(2).enumerate() {
            assert!(pair[1] - pair[0] >= START_AGAIN * 2_u32.pow(n as u32) - LOOK_AGAIN, "start {n}: {at:?}");
        }
        let log = std::fs::metadata(paths.gateway_log()).unwrap().len();
        assert!(log > 0 && log <= MESSAGES_LIMIT + 600_000, "{log} bytes");
    }
}
