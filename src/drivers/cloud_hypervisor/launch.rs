//! The start of an instance's hypervisor: from its supervisor to the guest that is booted.

use std::path::Path;

use tokio::time::timeout;

use super::{
    api::{self, VmState, VmmApiError},
    config::VmConfig,
    events::VmmEvent,
    fault, namespace,
    paths::VmmPaths,
    presence::{self, LOOK_AGAIN, SETTLE},
    supervisor::SupervisorSpec,
};
use crate::{
    domain::{Code, InstanceName},
    drivers::{DriverError, ErrorKind, Result, failure, gateway, process::Process},
    platform::{clock, files, process::Command},
};

/// It answers within a tenth of a second; later on a host that swaps.
const START: std::time::Duration = std::time::Duration::from_secs(60);
/// How often it is started for one `start`, if another process of the instance was in the way.
const LAUNCHES: u32 = 3;
/// Limit of the log that is read when it refused to start, in bytes.
const WORDS: u64 = 8 << 10;
/// Limit of the recorded events that are read, in bytes.
const EVENTS: u64 = 1 << 20;

/// Starts the supervisor with its hypervisor, and waits until that answers.
pub async fn launch(program: &Path, binary: &Path, paths: &VmmPaths, name: &InstanceName) -> Result<()> {
    let spec = SupervisorSpec {
        program: binary.to_owned(),
        api: paths.api(),
        link: paths.gateway().link(),
        lock: paths.supervisor_lock(),
        process: paths.process(),
        events: paths.events(),
        ended: paths.ended(),
    };
    let spec = serde_json::to_vec(&spec).map_err(std::io::Error::other);
    spec.and_then(|spec| files::replace_unsynced(&paths.supervisor_spec(), &spec))
        .map_err(|error| failure::io(error, Code::BootFailed, "the hypervisor's start cannot be described"))?;
    let mut again = LAUNCHES;
    while let Err(refused) = launch_once(program, paths, name).await {
        // A concurrent start was faster. If it succeeds, the instance runs; if it was interrupted, it has ended by then.
        if !fault::is_busy(&refused) {
            return Err(refused);
        }
        if wait_until_responsive(paths, name).await?.is_some() {
            break;
        }
        again -= 1;
        if again == 0 {
            return Err(refused);
        }
    }
    Ok(())
}

async fn launch_once(program: &Path, paths: &VmmPaths, name: &InstanceName) -> Result<()> {
    let failed = |error| failure::io(error, Code::BootFailed, "the hypervisor's log cannot be written");
    let log = files::private().append(true).create(true).open(paths.messages()).map_err(failed)?;
    // What an earlier start wrote is over.
    log.set_len(0).map_err(failed)?;
    let mut child = Command::new(program, START)
        .args(["detach", "--"])
        .args(namespace::ENTER)
        .arg(program)
        .arg("guest-hypervisor")
        .arg(paths.supervisor_spec())
        .start(log.try_clone().map_err(failed)?, log)
        .map_err(|error| failure::command(error, Code::BootFailed))?;
    let patience = clock::monotonic() + START;
    let started = loop {
        if let Ok(ended) = timeout(LOOK_AGAIN, child.wait()).await {
            tracing::debug!(instance = %name, ?ended, "Cloud Hypervisor refused to start");
            return Err(fault::start(&words(paths)));
        }
        match api::ping(&paths.api()).await {
            Ok(_) => break Ok(()),
            Err(_) if clock::monotonic() < patience => {}
            Err(error) => break Err(fault::api(error, &words(paths))),
        }
    };
    // Without a task that waits for it, the process would stay a zombie when it ends.
    tokio::spawn(async move {
        let _ = child.wait().await;
    });
    started
}

/// The process of the instance, if it runs and its hypervisor answers. One that does not answer may be starting or ending (an
/// earlier start was interrupted), so this waits for one or the other.
pub async fn wait_until_responsive(paths: &VmmPaths, name: &InstanceName) -> Result<Option<Process>> {
    let patience = clock::monotonic() + SETTLE;
    while let Some(process) = presence::running(paths, name).await? {
        match api::ping(&paths.api()).await {
            Ok(_) => return Ok(Some(process)),
            Err(error) if clock::monotonic() > patience => return Err(fault::api(error, &words(paths))),
            Err(_) => presence::pause(&process).await,
        }
    }
    Ok(None)
}

/// Boots the guest, unless it was booted before. An error of kind `Refused` leaves a hypervisor without a guest behind.
pub async fn boot(program: &Path, config: &VmConfig, paths: &VmmPaths, name: &InstanceName) -> Result<()> {
    let refused = |error| fault::api(error, &words(paths));
    gateway::ensure(program, &paths.gateway()).await?;
    if state(paths).await? == VmState::None {
        match api::create(&paths.api(), config).await {
            Ok(()) => {}
            // A concurrent start was faster.
            Err(error) if error.says("VM is already created") => {}
            Err(error) => return Err(refused(error)),
        }
    }
    match state(paths).await? {
        VmState::Booted => Ok(()),
        // It was booted, and shut down by another program: its supervisor is about to end it.
        VmState::Created if was_booted(paths)? => Ok(()),
        VmState::Created => {
            // Before the guest runs. Until then its hypervisor waits, so an interrupted start is continued and does not look
            // like an ended guest.
            tokio::fs::write(paths.started(), b"")
                .await
                .map_err(|error| failure::io(error, Code::BootFailed, "the start of the guest cannot be recorded"))?;
            match api::boot(&paths.api()).await {
                Ok(()) => Ok(()),
                // A concurrent start was faster. The hypervisor says the same of a guest that could not be booted, which it keeps.
                Err(error) if error.says("VM is already created") && is_booted(paths).await? => Ok(()),
                Err(error @ VmmApiError::Refused { .. }) => {
                    // The guest has not run, so another attempt may start this clone.
                    let unmarked = files::ignore_not_found(tokio::fs::remove_file(paths.started()).await);
                    unmarked.map_err(|error| failure::unseen(error, "the record of the guest's start"))?;
                    Err(refused(error))
                }
                // It may run. If it has ended, the cause is recorded.
                Err(error) => match presence::running(paths, name).await? {
                    Some(_) => Err(refused(error)),
                    None => Ok(()),
                },
            }
        }
        VmState::None => {
            let summary = format!("the configuration of {name} was deleted by another program");
            Err(DriverError::new(ErrorKind::Retry, Code::BootFailed, summary))
        }
    }
}

/// Whether the hypervisor has refused to boot its guest. It must not be asked again, because it remembers only a part of the guest: it may
/// boot it without its disks.
pub async fn has_refused(paths: &VmmPaths) -> Result<bool> {
    // Before the state, which is told when a boot that is under way has ended.
    let tried = has_event(paths, "booting")? && !was_booted(paths)?;
    Ok(tried && state(paths).await? == VmState::Created)
}

async fn is_booted(paths: &VmmPaths) -> Result<bool> {
    Ok(state(paths).await? == VmState::Booted || was_booted(paths)?)
}

async fn state(paths: &VmmPaths) -> Result<VmState> {
    api::state(&paths.api()).await.map_err(|error| fault::api(error, &words(paths)))
}

fn was_booted(paths: &VmmPaths) -> Result<bool> {
    has_event(paths, "booted")
}

/// Whether this happened to the guest of the hypervisor that runs.
fn has_event(paths: &VmmPaths, name: &str) -> Result<bool> {
    let events = files::read_tail(&paths.events(), EVENTS).map_err(|error| failure::unseen(error, "the events"))?;
    let events = events.unwrap_or_default();
    let mut events =
        events.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<VmmEvent>(line).ok());
    Ok(events.any(|event| event.source == "vm" && event.event == name))
}

/// The end of the hypervisor's log.
pub fn words(paths: &VmmPaths) -> String {
    let log = files::read_tail(&paths.messages(), WORDS).ok().flatten().unwrap_or_default();
    String::from_utf8_lossy(&log).into_owned()
}
