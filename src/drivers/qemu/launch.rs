//! The start of an instance's QEMU: from its command line to the guest that runs.

use std::{path::Path, time::Duration};

use tokio::time::timeout;

use super::{fault, instance, paths::QemuPaths};
use crate::{
    domain::{Code, InstanceName},
    drivers::{DriverError, ErrorKind, Result, failure, gateway},
    platform::{clock, files, process::Command},
};

/// It answers after a tenth of a second; later on a host that swaps.
const START: Duration = Duration::from_secs(60);
/// How often QEMU is started for one `start`, if another process of the instance was in the way.
const LAUNCHES: u32 = 3;
/// How long a hypervisor may neither answer nor end before a start gives up.
const SETTLE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// Limit of the output that is read when QEMU refused to start, in bytes.
const WORDS: u64 = 8 << 10;

/// What is started.
pub struct Launch<'a> {
    /// Mayfly's own program, which gives QEMU a session of its own.
    pub program: &'a Path,
    pub binary: &'a Path,
    pub arguments: &'a [String],
}

/// Starts QEMU, and waits until it answers. Its processors do not run yet.
pub async fn launch(launch: &Launch<'_>, paths: &QemuPaths, name: &InstanceName) -> Result<()> {
    let mut again = LAUNCHES;
    while let Err(refused) = launch_once(launch, paths, name).await {
        // A concurrent start was faster. If it succeeds, the instance runs; if it was interrupted, it has ended
        // by then.
        if !fault::is_busy(&refused) {
            return Err(refused);
        }
        if wait_until_responsive(paths, name).await? {
            break;
        }
        again -= 1;
        if again == 0 {
            return Err(refused);
        }
    }
    Ok(())
}

/// Starts QEMU in a session of its own, and waits until it answers. It is no daemon, because its sandbox forbids the
/// fork that makes one.
async fn launch_once(launch: &Launch<'_>, paths: &QemuPaths, name: &InstanceName) -> Result<()> {
    let failed = |error| failure::io(error, Code::BootFailed, "QEMU's log cannot be written");
    let log = files::private().append(true).create(true).open(paths.errors()).map_err(failed)?;
    // What an earlier start wrote is over.
    log.set_len(0).map_err(failed)?;
    let mut child = Command::new(launch.program, START)
        .args(["detach", "--"])
        .arg(launch.binary)
        .args(launch.arguments)
        .start(log.try_clone().map_err(failed)?, log)
        .map_err(|error| failure::command(error, Code::BootFailed))?;
    let patience = clock::monotonic() + START;
    let started = loop {
        if let Ok(ended) = timeout(LOOK_AGAIN, child.wait()).await {
            tracing::debug!(instance = %name, ?ended, "QEMU refused to start");
            let said = files::read_tail(&paths.errors(), WORDS).ok().flatten().unwrap_or_default();
            return Err(fault::start(&String::from_utf8_lossy(&said)));
        }
        match instance::answers_as(paths, name).await {
            Ok(true) => break Ok(()),
            Ok(false) | Err(_) if clock::monotonic() < patience => {}
            Ok(false) => {
                let summary = format!("another guest answers on the socket of {name}");
                break Err(DriverError::new(ErrorKind::Permanent, Code::BootFailed, summary));
            }
            Err(error) => break Err(fault::qmp(error, "QEMU was started and does not answer")),
        }
    };
    // Without a task that waits for it, the process would stay a zombie when it ends.
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
    started
}

/// Whether the instance runs and answers. One that does not answer may be starting or ending (an earlier start
/// was interrupted), so this waits for one or the other.
pub async fn wait_until_responsive(paths: &QemuPaths, name: &InstanceName) -> Result<bool> {
    let patience = clock::monotonic() + SETTLE;
    while let Some(process) = instance::running(paths, name).await? {
        match instance::answers_as(paths, name).await {
            Ok(true) => return Ok(true),
            Ok(false) => {
                let summary = format!("another guest answers on the socket of {name}");
                return Err(DriverError::new(ErrorKind::Permanent, Code::BootFailed, summary));
            }
            Err(error) if clock::monotonic() > patience => {
                return Err(fault::qmp(error, "QEMU is running but does not answer"));
            }
            Err(_) => drop(timeout(LOOK_AGAIN, process.ended()).await),
        }
    }
    Ok(false)
}

/// Starts the processors of a new guest. They stay stopped until QEMU is set up to record how the guest ends, so
/// that no end is lost if this service dies meanwhile.
pub async fn let_run(program: &Path, paths: &QemuPaths, name: &InstanceName) -> Result<()> {
    if gateway::is_used(&paths.gateway())? {
        gateway::ensure(program, &paths.gateway()).await?;
    }
    let patience = clock::monotonic() + SETTLE;
    loop {
        let error = match instance::arm_watch(paths).await {
            Ok(()) => {
                // Before the guest runs. Until then its process waits, so an interrupted start is continued and
                // does not look like an ended guest.
                tokio::fs::write(paths.started(), b"").await.map_err(|error| {
                    failure::io(error, Code::BootFailed, "the start of the guest cannot be recorded")
                })?;
                match instance::let_run(paths).await {
                    // Finding the process records its identity.
                    Ok(()) => return instance::presence(paths).await.map(|_| ()),
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        match instance::running(paths, name).await? {
            // It has ended, and the cause is recorded.
            None => return Ok(()),
            Some(_) if clock::monotonic() > patience => {
                return Err(fault::qmp(error, "QEMU is running but does not answer"));
            }
            Some(process) => drop(timeout(LOOK_AGAIN, process.ended()).await),
        }
    }
}
