//! Stops guests, and removes their VMs.

use std::time::Duration;

use rustix::process::Signal;
use tokio::time::timeout;

use super::{Tart, clone, instance::TartPresence, paths::TartPaths, run};
use crate::{
    domain::{Code, GuestOs, InstanceName},
    drivers::{
        DriverError, ErrorKind, Result,
        failure::{self, shown},
        last_resort,
        process::Process,
    },
    platform::{clock, files::ignore_not_found},
};

/// A guest that is still booting ignores the first press of its power button, and Tart loses an interrupt that
/// arrives before it listens.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const INTERRUPTS: u32 = 5;
const DELETE: Duration = Duration::from_secs(60);
/// How long `tart delete` may report a VM as running after its run has ended.
const LET_GO: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl Tart {
    /// Returns when no `tart run` of this VM is left.
    pub(super) async fn halt(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        let paths = self.paths(name);
        // An interrupted start may have left more than one starting process.
        while let TartPresence::Running(process) = self.find(&paths, name).await? {
            if !grace.is_zero() && hears_its_button(&paths) && timeout(grace, ask(&process)).await.is_ok() {
                continue;
            }
            self.force(name, &process).await?;
        }
        Ok(())
    }

    /// Ends a run that may not cooperate. The guest loses power, whatever it is doing.
    pub(super) async fn force(&self, name: &InstanceName, process: &Process) -> Result<()> {
        for _ in 0..INTERRUPTS {
            // After an interrupt, Tart stops its framework and softnet properly; after a kill it cannot.
            if let Err(error) = process.signal(Signal::INT).await {
                tracing::warn!(%error, instance = %name, pid = process.pid(), "cannot interrupt tart");
                break;
            }
            if timeout(ASK_AGAIN, process.ended()).await.is_ok() {
                return Ok(());
            }
        }
        tracing::warn!(instance = %name, pid = process.pid(), "tart does not stop; killing it");
        last_resort::kill(process, name).await
    }

    /// Deletes a VM that does not run, and confirms it. Absence is success.
    pub(super) async fn remove(&self, name: &InstanceName) -> Result<()> {
        let paths = self.paths(name);
        let patience = clock::monotonic() + LET_GO;
        while exists(&paths)? {
            let output = self
                .command(DELETE)?
                .args(["delete", name.as_str()])
                .run()
                .await
                .map_err(|error| failure::command(error, Code::HostUnavailable))?;
            let said = output.stderr_tail.as_str();
            if !exists(&paths)? {
                break;
            }
            if said.contains(" is running") {
                // Another program started it meanwhile, or its lock briefly outlives its process.
                self.halt(name, Duration::ZERO).await?;
                if clock::monotonic() > patience {
                    let holder = match self.find(&paths, name).await? {
                        TartPresence::Busy { holder } => holder,
                        TartPresence::Running(process) => Some(process.pid()),
                        TartPresence::Nothing => None,
                    };
                    return Err(run::busy(name, holder));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
            } else if is_incomplete(&paths)? {
                // Tart ignores a directory that lacks one of a VM's files, or fails at it, and would never remove it.
                // An interrupted start may have come up since the VM was halted.
                self.halt(name, Duration::ZERO).await?;
                self.sweep(name, &paths).await?;
            } else {
                let summary = format!(
                    "`tart delete {name}` ended with {} and left {}; it said: {}",
                    output.status,
                    paths.vm.display(),
                    shown(said.as_bytes())
                );
                return Err(DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary).tail(said));
            }
        }
        Ok(())
    }

    /// Removes the rest of a VM that Tart no longer recognises.
    async fn sweep(&self, name: &InstanceName, paths: &TartPaths) -> Result<()> {
        match self.find(paths, name).await? {
            TartPresence::Nothing => {}
            TartPresence::Running(process) => return Err(run::busy(name, Some(process.pid()))),
            TartPresence::Busy { holder } => return Err(run::busy(name, holder)),
        }
        let _home = clone::lock_home(&self.settings.tart_home).await?;
        let removed = tokio::fs::remove_dir_all(&paths.vm).await;
        ignore_not_found(removed)
            .map_err(|error| failure::io(error, Code::HostUnavailable, "the VM's directory cannot be removed"))
    }
}

/// A Linux guest reacts to the power button. A macOS guest asks its user, and there is none.
fn hears_its_button(paths: &TartPaths) -> bool {
    run::read_config(paths).is_ok_and(|config| config.os == GuestOs::Linux)
}

/// Returns when the process has ended.
async fn ask(process: &Process) {
    loop {
        if let Err(error) = process.signal(Signal::USR2).await {
            tracing::debug!(%error, pid = process.pid(), "cannot ask the guest to power down");
        }
        if timeout(ASK_AGAIN, process.ended()).await.is_ok() {
            return;
        }
    }
}

pub(super) fn exists(paths: &TartPaths) -> Result<bool> {
    failure::exists(&paths.vm).map_err(|error| failure::unseen(error, "the VM"))
}

fn is_incomplete(paths: &TartPaths) -> Result<bool> {
    Ok(paths.missing().map_err(|error| failure::unseen(error, "the VM"))?.is_some())
}
