//! Starts a `tart run` and waits until its guest starts or fails.
//!
//! Tart prints nothing when a VM has started. The observable signs are, in this order: the process lives, it holds
//! the VM's lock, its control socket appears (macOS 14 and later). A failure ends the process with a message.

use std::{io, path::Path, process::ExitStatus, time::Duration};

use tokio::time::timeout;

use super::{
    Tart, address, args, config,
    fault::{self, StartFailure},
    instance::{self, TartPresence},
    paths::TartPaths,
    words,
};
use crate::{
    domain::{Code, InstanceName, tart_config::TartConfig},
    drivers::{
        DriverError, ErrorKind, InstanceSpec, Result, failure,
        foreground::{ForegroundRun, RunEnd},
        lock::LockHolder,
        record, run_output,
    },
    platform::{
        clock,
        files::{self, ignore_not_found},
        process::Command,
    },
};

/// Before it takes the lock, Tart may wait for another command that locks its home.
const START: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a run is started for one `start`, if another one was in its way.
const LAUNCHES: u32 = 3;

/// Result of waiting for a run.
enum StartWait {
    Up,
    Ended(RunEnd),
    Stuck,
}

impl Tart {
    pub(super) async fn run(&self, spec: &InstanceSpec) -> Result<()> {
        let (name, paths) = (&spec.name, self.paths(&spec.name));
        let started = || {
            std::fs::write(paths.started(), b"")
                .map_err(|error| failure::io(error, Code::BootFailed, "it cannot be noted that the guest was started"))
        };
        let was_started =
            || failure::exists(&paths.started()).map_err(|error| failure::unseen(error, "the record of the start"));
        for _ in 0..LAUNCHES {
            let mut run = match self.find(&paths, name).await? {
                TartPresence::Running(process) => ForegroundRun::Found(process),
                TartPresence::Busy { holder } => return Err(busy(name, holder)),
                TartPresence::Nothing if was_started()? => return Ok(()),
                TartPresence::Nothing => self.launch(spec, &paths).await?,
            };
            match self.wait_until_up(&paths, &mut run).await? {
                StartWait::Up => return started(),
                StartWait::Stuck => {
                    self.halt(name, Duration::ZERO).await?;
                    let summary =
                        format!("`tart run` of {name} did not get hold of its VM within {} s", START.as_secs());
                    return Err(DriverError::new(ErrorKind::Retry, Code::BootFailed, summary));
                }
                // For whatever reason it ended, this call starts it again.
                StartWait::Ended(RunEnd::Another) => {}
                StartWait::Ended(RunEnd::Ours(status)) => match self.why_ended(&paths, status)? {
                    None => return started(),
                    // A concurrent start was faster. If it succeeds, the instance runs.
                    Some(StartFailure::AlreadyRunning) => {}
                    Some(StartFailure::Failed(error)) => return Err(error),
                },
            }
        }
        let summary = format!("{name} was started {LAUNCHES} times and did not stay");
        Err(DriverError::new(ErrorKind::Retry, Code::BootFailed, summary))
    }

    async fn launch(&self, spec: &InstanceSpec, paths: &TartPaths) -> Result<ForegroundRun> {
        let failed = |error| failure::io(error, Code::BootFailed, "the run of the VM cannot be prepared");
        if let Some(missing) = paths.missing().map_err(|error| failure::unseen(error, "the VM"))? {
            let summary = format!("{} has no {missing}: it was never created, or was removed", spec.name);
            return Err(DriverError::new(ErrorKind::Instance, Code::BootFailed, summary));
        }
        let config = read_config(paths)?;
        make_run_dir(&paths.run).map_err(failed)?;
        address::leases(&self.settings, paths, config.mac).record().map_err(failed)?;
        // The socket of a killed run would be taken for the sign that this one is up. If a concurrent start was
        // faster, the socket may belong to its guest.
        if instance::holder(&paths.config()).map_err(failed)? == LockHolder::Free {
            ignore_not_found(std::fs::remove_file(paths.control_sock())).map_err(failed)?;
        }
        let output =
            (run_output::create(&paths.out()).map_err(failed)?, run_output::create(&paths.err()).map_err(failed)?);
        let [launcher, before @ ..] = self.settings.launcher.as_slice() else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let command = Command::new(launcher, START)
            .args(before)
            .arg(self.binary()?)
            .args(args::run(&spec.name, config.os, &spec.network.policy, &self.settings))
            .env(record::DIRECTORY, &paths.run);
        ForegroundRun::launch(args::environment(command, &self.settings), output, |_| {})
    }

    async fn wait_until_up(&self, paths: &TartPaths, run: &mut ForegroundRun) -> Result<StartWait> {
        let patience = clock::monotonic() + START;
        let mut held_since = None;
        loop {
            if self.holds(paths, run.pid())? {
                let held = clock::elapsed(*held_since.get_or_insert_with(clock::monotonic));
                if paths.control_sock().exists() || held >= self.settings.settle {
                    return Ok(StartWait::Up);
                }
            } else if clock::monotonic() > patience {
                return Ok(StartWait::Stuck);
            }
            if let Ok(ending) = timeout(LOOK_AGAIN, run.ended()).await {
                return Ok(StartWait::Ended(ending));
            }
        }
    }

    /// Whether this process holds the VM's lock.
    pub(super) fn holds(&self, paths: &TartPaths, pid: i32) -> Result<bool> {
        match instance::holder(&paths.config()) {
            Ok(holder) => Ok(holder == LockHolder::Process(pid)),
            Err(error) => Err(failure::unseen(error, "the VM's lock")),
        }
    }

    /// `None`: the guest ran, and `ended` returns the cause of its end.
    fn why_ended(&self, paths: &TartPaths, status: Option<ExitStatus>) -> Result<Option<StartFailure>> {
        let (out, err) = said(paths)?;
        if err.trim().is_empty() && words::cause(&out, &err).is_some() {
            return Ok(None);
        }
        Ok(Some(fault::start(status, &out, &err, self)))
    }
}

pub(super) fn busy(name: &InstanceName, holder: Option<i32>) -> DriverError {
    let who = holder.map_or_else(|| "something".to_owned(), |pid| format!("process {pid}"));
    let summary = format!(
        "{who} holds the configuration of {name} and was not started by Mayfly; is it being pushed, deleted or run by hand?"
    );
    DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary)
}

pub(super) fn read_config(paths: &TartPaths) -> Result<TartConfig> {
    let bytes = std::fs::read(paths.config()).map_err(|error| failure::unseen(error, "the VM's configuration"))?;
    config::parse(&bytes).map_err(|why| {
        let summary = format!("{} was not understood: {why}", paths.config().display());
        DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary)
    })
}

pub(super) fn make_run_dir(dir: &Path) -> io::Result<()> {
    files::ensure_private_dir(dir)
}

/// The output and the error output of the latest run.
pub(super) fn said(paths: &TartPaths) -> Result<(String, String)> {
    let read = |path: &Path| run_output::read_end(path).map_err(|error| failure::unseen(error, "what `tart run` said"));
    Ok((read(&paths.out())?, read(&paths.err())?))
}
