//! Kills a hypervisor that does not end by itself.

use std::time::Duration;

use tokio::time::timeout;

use super::{DriverError, ErrorKind, Result, process::Process};
use crate::domain::{Code, InstanceName};

/// A process that has not ended this long after SIGKILL is blocked by a broken disk.
const KILL: Duration = Duration::from_secs(5);

/// Returns when the process has ended.
pub async fn kill(process: &Process, name: &InstanceName) -> Result<()> {
    let killed = process.kill().await;
    if timeout(KILL, process.ended()).await.is_ok() {
        return Ok(());
    }
    let summary = format!("process {} of {name} cannot be killed", process.pid());
    let error = DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary);
    Err(match killed {
        Ok(()) => error,
        Err(cause) => error.source(cause),
    })
}
