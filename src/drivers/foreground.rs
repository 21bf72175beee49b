//! A hypervisor that runs in the foreground: one process that is the VM. It is started in a session of its own
//! (`mayfly detach`), so it outlives the service, and may be found again by a later one.

use std::{fs::File, process::ExitStatus};

use tokio::sync::oneshot;

use super::{
    DriverError, ErrorKind, Result, failure,
    process::{AwaitedChild, Process},
};
use crate::{domain::Code, platform::process::Command};

pub enum ForegroundRun {
    Found(Process),
    /// Waiting for the process's end in another way could take this status away.
    Launched {
        pid: i32,
        status: oneshot::Receiver<ExitStatus>,
    },
}

/// What is known about a run that ended.
pub enum RunEnd {
    /// This call did not start it.
    Another,
    Ours(Option<ExitStatus>),
}

impl ForegroundRun {
    /// Starts it. `on_end` is called with its exit status if this service is still there.
    pub fn launch(
        command: Command,
        (out, err): (File, File),
        on_end: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Result<ForegroundRun> {
        let mut child = command.start(out, err).map_err(|error| failure::command(error, Code::BootFailed))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
        let awaited = pid.map(AwaitedChild::new);
        let (sender, status) = oneshot::channel();
        // Without a task that waits for it, the process would become a zombie when it ends. The caller may be gone by
        // then.
        tokio::spawn(async move {
            let status = child.wait().await;
            drop(awaited);
            if let Ok(status) = status {
                on_end(status);
                let _ = sender.send(status);
            }
        });
        let pid = pid.ok_or_else(|| {
            DriverError::new(ErrorKind::Retry, Code::BootFailed, "the hypervisor ended before it had a process id")
        })?;
        Ok(ForegroundRun::Launched { pid, status })
    }

    pub fn pid(&self) -> i32 {
        match self {
            ForegroundRun::Found(process) => process.pid(),
            ForegroundRun::Launched { pid, .. } => *pid,
        }
    }

    pub async fn ended(&mut self) -> RunEnd {
        match self {
            ForegroundRun::Found(process) => {
                process.ended().await;
                RunEnd::Another
            }
            ForegroundRun::Launched { status, .. } => RunEnd::Ours(status.await.ok()),
        }
    }
}
