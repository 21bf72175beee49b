//! Starts a macosvm, and waits until its guest runs or has failed.
//!
//! macosvm prints when its guest runs. A failure ends the process with a message, and often with exit status 0.

use std::{io, process::ExitStatus, time::Duration};

use tokio::time::timeout;

use super::{
    Macosvm,
    description::{LARGEST, VmDescription},
    messages::{self, ExitRecord, RunningGuests},
    paths::MacosvmPaths,
};
use crate::{
    domain::{Code, InstanceName},
    drivers::{
        DriverError, ErrorKind, InstanceSpec, Result, failure,
        foreground::{ForegroundRun, RunEnd},
        record, run_output,
    },
    platform::{
        clock,
        files::{self, ignore_not_found},
        process::Command,
    },
};

/// Apple's framework starts a VM within seconds; the disk may be on a busy volume.
const START_TIMEOUT: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a run is started for one `start`, if another one was in its way.
const LAUNCHES: u32 = 3;

/// Result of waiting for a run.
enum RunWait {
    Up,
    Ended(RunEnd),
    Stuck,
}

impl Macosvm {
    pub(super) async fn run(&self, spec: &InstanceSpec) -> Result<()> {
        let (name, paths) = (&spec.name, self.paths(&spec.name));
        for _ in 0..LAUNCHES {
            let was_started = was_started(&paths)?;
            let mut run = match self.process(&paths).await? {
                // What it wrote about its start may have been cut since.
                Some(_) if was_started => return Ok(()),
                Some(process) => ForegroundRun::Found(process),
                None if was_started => return Ok(()),
                None => self.launch(name, &paths).await?,
            };
            match wait_until_up(&paths, &mut run).await? {
                RunWait::Up => return note_start(&paths),
                RunWait::Stuck => {
                    self.halt(name, Duration::ZERO).await?;
                    // No guest ran: the next start may run one.
                    self.forget_run(&paths)?;
                    let summary = format!(
                        "the macosvm of {name} (process {}) did not start its guest within {} s",
                        run.pid(),
                        START_TIMEOUT.as_secs()
                    );
                    return Err(DriverError::new(ErrorKind::Retry, Code::BootFailed, summary));
                }
                // For whatever reason it ended, this call starts it again.
                RunWait::Ended(RunEnd::Another) => {}
                RunWait::Ended(RunEnd::Ours(status)) => return self.after_end(name, &paths, status).await,
            }
        }
        let summary = format!("{name} was started {LAUNCHES} times and did not keep running");
        Err(DriverError::new(ErrorKind::Retry, Code::BootFailed, summary))
    }

    /// A run of this call has ended: its guest ran, or could not be started.
    async fn after_end(&self, name: &InstanceName, paths: &MacosvmPaths, status: Option<ExitStatus>) -> Result<()> {
        let err = said(paths)?;
        if messages::started(&err) {
            return note_start(paths);
        }
        let beside = self.running_beside(name).await;
        Err(messages::start_failure(status, &err, beside))
    }

    /// An approximation, for a message.
    async fn running_beside(&self, name: &InstanceName) -> RunningGuests {
        let listed = self.all_running().await.unwrap_or_default();
        let others = listed.iter().filter(|l| l.running && l.name != name.as_str());
        let (own, foreign): (Vec<_>, Vec<_>) = others.partition(|l| l.ours);
        RunningGuests { own: own.len(), foreign: foreign.len() }
    }

    async fn launch(&self, name: &InstanceName, paths: &MacosvmPaths) -> Result<ForegroundRun> {
        let failed = |error| failure::io(error, Code::BootFailed, "the run of the VM cannot be prepared");
        if let Some(missing) = paths.missing().map_err(|error| failure::unseen(error, "the VM"))? {
            let summary = format!("{name} has no {missing}: it was never created, or was removed");
            return Err(DriverError::new(ErrorKind::Instance, Code::BootFailed, summary));
        }
        let description = read_description(paths)?;
        let mac = description.mac().map_err(|why| changed(paths, &why))?;
        let version = self.version().await?;
        self.leases(paths, mac).record().map_err(failed)?;
        // An interrupted start may have come up meanwhile. Its output must not be truncated.
        if let Some(process) = self.process(paths).await? {
            return Ok(ForegroundRun::Found(process));
        }
        self.forget_run(paths)?;
        let output =
            (run_output::create(&paths.out()).map_err(failed)?, run_output::create(&paths.err()).map_err(failed)?);
        let [launcher, before @ ..] = self.settings.launcher.as_slice() else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        // Without the first option, the guest's serial line would be macosvm's input and output.
        let mut command = Command::new(launcher, START_TIMEOUT).args(before).arg(self.binary()?).arg("--no-serial");
        if version.has_pid_file() {
            command = command.arg("--pid-file").arg(paths.pid_file());
        }
        let command = command.arg(paths.description()).env(record::DIRECTORY, &paths.dir);
        let exit = paths.exit();
        ForegroundRun::launch(command, output, move |status| {
            let bytes = serde_json::to_vec(&ExitRecord::from(status)).unwrap_or_default();
            match files::replace_unsynced(&exit, &bytes) {
                Ok(()) => {}
                // The instance was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%error, file = %exit.display(), "cannot record how macosvm ended"),
            }
        })
    }

    /// Removes what an earlier run recorded about its end.
    fn forget_run(&self, paths: &MacosvmPaths) -> Result<()> {
        for file in [paths.stopping(), paths.exit(), paths.pid_file()] {
            ignore_not_found(std::fs::remove_file(file)).map_err(|error| {
                failure::io(error, Code::BootFailed, "the records of an earlier run cannot be removed")
            })?;
        }
        Ok(())
    }
}

/// Whether the guest of this clone was started.
fn was_started(paths: &MacosvmPaths) -> Result<bool> {
    failure::exists(&paths.started()).map_err(|error| failure::unseen(error, "the record of the start"))
}

fn note_start(paths: &MacosvmPaths) -> Result<()> {
    std::fs::write(paths.started(), b"")
        .map_err(|error| failure::io(error, Code::BootFailed, "the start of the guest cannot be recorded"))
}

async fn wait_until_up(paths: &MacosvmPaths, run: &mut ForegroundRun) -> Result<RunWait> {
    let patience = clock::monotonic() + START_TIMEOUT;
    loop {
        if messages::started(&said(paths)?) {
            return Ok(RunWait::Up);
        }
        if clock::monotonic() > patience {
            return Ok(RunWait::Stuck);
        }
        if let Ok(end) = timeout(LOOK_AGAIN, run.ended()).await {
            return Ok(RunWait::Ended(end));
        }
    }
}

/// The error output of the latest run.
pub(super) fn said(paths: &MacosvmPaths) -> Result<String> {
    run_output::read_end(&paths.err()).map_err(|error| failure::unseen(error, "what macosvm said"))
}

/// The description, if it still is the one that was written for this clone.
pub(super) fn read_description(paths: &MacosvmPaths) -> Result<VmDescription> {
    let path = paths.description();
    let unseen = |error| failure::unseen(error, "the VM's description");
    if path.metadata().map_err(unseen)?.len() > LARGEST {
        return Err(changed(paths, "is too large"));
    }
    let bytes = std::fs::read(&path).map_err(unseen)?;
    VmDescription::parse(&bytes, paths).map_err(|why| changed(paths, &why))
}

fn changed(paths: &MacosvmPaths, why: &str) -> DriverError {
    let summary = format!("the VM's description {} was changed: it {why}", paths.description().display());
    DriverError::new(ErrorKind::Instance, Code::BootFailed, summary)
}
