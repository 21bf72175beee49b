//! Stops guests, and finds out how they ended.

use std::{io, path::Path, time::Duration};

use rustix::process::Signal;
use tokio::time::timeout;

use super::{
    Macosvm,
    messages::{self, ExitRecord},
    paths::MacosvmPaths,
    run::said,
};
use crate::{
    domain::{Code, InstanceName, event::GoneCause},
    drivers::{Result, failure, instances, last_resort, process::Process},
    platform::{
        clock,
        files::{self, ignore_not_found},
    },
};

/// A macosvm that runs longer than this after SIGTERM hangs.
const TERMINATE: Duration = Duration::from_secs(5);
/// The service that started a process records its exit status a moment after the end.
const EXIT_RECORD: Duration = Duration::from_millis(500);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// No record is that long.
const RECORD_LIMIT: u64 = 4 << 10;

impl Macosvm {
    /// Returns when no macosvm of this VM is left. macosvm cannot ask its guest to power down, so `grace` is only the
    /// time in which the guest may end by itself, for example because it was asked over SSH.
    pub(super) async fn halt(&self, name: &InstanceName, grace: Duration) -> Result<()> {
        self.halt_at(name, &self.paths(name), grace).await
    }

    async fn halt_at(&self, name: &InstanceName, paths: &MacosvmPaths, grace: Duration) -> Result<()> {
        // An interrupted start may have left more than one starting process.
        while let Some(process) = self.process(paths).await? {
            if !grace.is_zero() && timeout(grace, process.ended()).await.is_ok() {
                continue;
            }
            self.force(name, paths, &process).await?;
        }
        Ok(())
    }

    /// Removes the instance. Absence is success.
    ///
    /// Its directory is renamed first. Then an interrupted start that has not recorded its process can no longer do so,
    /// and runs nothing. The process of one that has recorded it meanwhile is found in the renamed directory.
    pub(super) async fn remove(&self, name: &InstanceName) -> Result<()> {
        let failed =
            |error| failure::io(error, Code::HostUnavailable, "what is left of the instance cannot be removed");
        self.halt(name, Duration::ZERO).await?;
        let removed = self.settings.removed(name);
        // What an interrupted removal left.
        self.remove_renamed(name, &removed).await?;
        files::ensure_private_dir(&self.settings.staging()).map_err(failed)?;
        ignore_not_found(std::fs::rename(self.paths(name).dir, &removed)).map_err(failed)?;
        self.remove_renamed(name, &removed).await
    }

    async fn remove_renamed(&self, name: &InstanceName, removed: &Path) -> Result<()> {
        self.halt_at(name, &MacosvmPaths { dir: removed.to_owned() }, Duration::ZERO).await?;
        instances::remove(removed).await
    }

    /// Ends a macosvm. The guest loses power, whatever it is doing.
    async fn force(&self, name: &InstanceName, paths: &MacosvmPaths, process: &Process) -> Result<()> {
        // macosvm writes nothing when a signal ends it.
        std::fs::write(paths.stopping(), b"").map_err(|error| {
            failure::io(error, Code::HostUnavailable, "it cannot be noted that the guest is stopped")
        })?;
        match process.signal(Signal::TERM).await {
            Ok(()) if timeout(TERMINATE, process.ended()).await.is_ok() => return Ok(()),
            Ok(()) => {}
            Err(error) => tracing::warn!(%error, instance = %name, pid = process.pid(), "cannot end macosvm"),
        }
        tracing::warn!(instance = %name, pid = process.pid(), "macosvm does not end; killing it");
        last_resort::kill(process, name).await
    }

    /// The cause of the latest run's end.
    pub(super) async fn cause(&self, name: &InstanceName, paths: &MacosvmPaths) -> Result<GoneCause> {
        let unseen = |error| failure::unseen(error, "the records of the run");
        let err = said(paths)?;
        if let Some(cause) = messages::end(&err) {
            return Ok(cause);
        }
        if failure::exists(&paths.stopping()).map_err(unseen)? {
            return Ok(GoneCause::HostStop);
        }
        // A guest that was started or reached ran: a message about a start is not about its end.
        let ran =
            failure::exists(&paths.started()).map_err(unseen)? || failure::exists(&paths.reached()).map_err(unseen)?;
        if !ran {
            return match messages::host_fault(&err, Default::default()) {
                Some(fault) => Err(fault),
                None => Ok(GoneCause::Unknown),
            };
        }
        let cause = match exit_record(paths).await.map_err(unseen)? {
            Some(record) => record.cause(),
            None => GoneCause::Unknown,
        };
        tracing::info!(instance = %name, ?cause, "macosvm ended without a message");
        Ok(cause)
    }
}

/// `None`: the service that started the process did not observe its end.
async fn exit_record(paths: &MacosvmPaths) -> io::Result<Option<ExitRecord>> {
    let patience = clock::monotonic() + EXIT_RECORD;
    loop {
        match std::fs::File::open(paths.exit()) {
            Ok(file) => {
                use io::Read;
                let mut bytes = Vec::new();
                file.take(RECORD_LIMIT).read_to_end(&mut bytes)?;
                return Ok(serde_json::from_slice(&bytes).ok());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        if clock::monotonic() > patience {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
