//! Starts a `tart run` and waits until its guest starts or fails.
//!
//! Tart prints nothing when a VM has started. The observable signs are, in this order: the process lives, it holds
//! the VM's lock, its control socket appears (macOS 14 and later). A failure ends the process with a message.

use std::{fs::File, io, path::Path, process::ExitStatus, time::Duration};

use tokio::{sync::oneshot, time::timeout};

use super::{
    Tart, address, args, config,
    fault::{self, StartFailure},
    instance::{self, TartPresence},
    paths::TartPaths,
    words,
};
use crate::{
    domain::{Code, InstanceName, tart_config::TartConfig},
    drivers::{DriverError, ErrorKind, InstanceSpec, Result, failure, lock::LockHolder, process::Process, record},
    platform::{
        clock,
        files::{self, KeptParts, ignore_not_found},
        process::Command,
    },
};

/// Before it takes the lock, Tart may wait for another command that locks its home.
const START: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How often a run is started for one `start`, if another one was in its way.
const LAUNCHES: u32 = 3;
/// Limit of a run's output that is read.
const OUTPUT: u64 = 256 << 10;

/// Result of waiting for a run.
enum StartWait {
    Up,
    Ended(Ending),
    Stuck,
}

/// What is known about a run that ended during the wait.
enum Ending {
    /// This call did not start it.
    Another,
    Ours(Option<ExitStatus>),
}

/// A `tart run` that is being awaited.
enum TartRun {
    Found(Process),
    /// Waiting for the process's end in another way could take this status away.
    Launched {
        pid: i32,
        status: oneshot::Receiver<ExitStatus>,
    },
}

impl TartRun {
    fn pid(&self) -> i32 {
        match self {
            TartRun::Found(process) => process.pid(),
            TartRun::Launched { pid, .. } => *pid,
        }
    }

    async fn ended(&mut self) -> Ending {
        match self {
            TartRun::Found(process) => {
                process.ended().await;
                Ending::Another
            }
            TartRun::Launched { status, .. } => Ending::Ours(status.await.ok()),
        }
    }
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
                TartPresence::Running(process) => TartRun::Found(process),
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
                StartWait::Ended(Ending::Another) => {}
                StartWait::Ended(Ending::Ours(status)) => match self.why_ended(&paths, status)? {
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

    async fn launch(&self, spec: &InstanceSpec, paths: &TartPaths) -> Result<TartRun> {
        let failed = |error| failure::io(error, Code::BootFailed, "the run of the VM cannot be prepared");
        if let Some(missing) = paths.missing().map_err(|error| failure::unseen(error, "the VM"))? {
            let summary = format!("{} has no {missing}: it was never created, or was removed", spec.name);
            return Err(DriverError::new(ErrorKind::Instance, Code::BootFailed, summary));
        }
        let config = read_config(paths)?;
        make_run_dir(&paths.run).map_err(failed)?;
        address::note_leases(&self.settings, paths, config.mac).map_err(failed)?;
        // The socket of a killed run would be taken for the sign that this one is up. If a concurrent start was
        // faster, the socket may belong to its guest.
        if instance::holder(&paths.config()).map_err(failed)? == LockHolder::Free {
            ignore_not_found(std::fs::remove_file(paths.control_sock())).map_err(failed)?;
        }
        let (out, err) = (log(&paths.out()).map_err(failed)?, log(&paths.err()).map_err(failed)?);
        let [launcher, before @ ..] = self.settings.launcher.as_slice() else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let command = Command::new(launcher, START)
            .args(before)
            .arg(self.binary()?)
            .args(args::run(&spec.name, config.os, &spec.network.policy, &self.settings))
            .env(record::DIRECTORY, &paths.run);
        let mut child = args::environment(command, &self.settings)
            .start(out, err)
            .map_err(|error| failure::command(error, Code::BootFailed))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let (sender, status) = oneshot::channel();
        // Without a task that waits for it, the process would become a zombie when it ends. The caller may be gone by
        // then.
        tokio::spawn(async move {
            if let Ok(status) = child.wait().await {
                let _ = sender.send(status);
            }
        });
        let pid = pid.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
        Ok(TartRun::Launched { pid, status })
    }

    async fn wait_until_up(&self, paths: &TartPaths, run: &mut TartRun) -> Result<StartWait> {
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

/// Truncated, and opened for appending, so that two concurrent runs overwrite nothing.
fn log(path: &Path) -> io::Result<File> {
    let file = files::private().append(true).create(true).open(path)?;
    file.set_len(0)?;
    Ok(file)
}

/// Size on disk at which the output of `tart run` is cut, in bytes.
const OUTPUT_LIMIT: u64 = 4 << 20;
const CHECK_OUTPUT_EVERY: Duration = Duration::from_secs(1);

/// Cuts the output of a run that exceeds its limit. It is opened for appending, so the run continues at the new end.
pub(super) async fn keep_logs_bounded(paths: &TartPaths) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(CHECK_OUTPUT_EVERY).await;
        for path in [paths.out(), paths.err()] {
            match files::cut_above(&path, OUTPUT_LIMIT, KeptParts::default()) {
                Ok(false) => {}
                Ok(true) => {
                    tracing::warn!(file = %path.display(), "the output of `tart run` exceeded its limit and was cut")
                }
                Err(error) => tracing::warn!(%error, file = %path.display(), "cannot cut the output of `tart run`"),
            }
        }
    }
}

/// The output and the error output of the latest run.
pub(super) fn said(paths: &TartPaths) -> Result<(String, String)> {
    let read = |path: &Path| read_end(path).map_err(|error| failure::unseen(error, "what `tart run` said"));
    Ok((read(&paths.out())?, read(&paths.err())?))
}

fn read_end(path: &Path) -> io::Result<String> {
    let bytes = files::read_tail(path, OUTPUT)?.unwrap_or_default();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
