//! A QEMU that runs: finding it, talking to it, and its end.
//!
//! It is nobody's child, so nothing tells us of it but what it left: a pid file that it holds a lock on, its command line,
//! and its sockets. The lock's holder is asked of the kernel; the file's content may be that of a process long gone.

use std::{fs::File, io::Read, time::Duration};

use rustix::process::{Flock, FlockType, fcntl_getlk};
use serde_json::Value;

use super::{
    paths::Paths,
    qmp::{self, Client, QmpError},
    usernet,
};
use crate::{
    domain::{InstanceName, event::GoneCause},
    drivers::process::{self, CommandLine, Process},
};

/// QMP answers in milliseconds, or it hangs.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// How often the processes are looked through while matching ones come and go.
const SCANS: u32 = 10;

#[derive(Debug)]
pub enum Found {
    Nothing,
    Ours(Process),
    /// The pid file is held by a process that is not this instance.
    Stranger(i32),
}

/// The process of this instance.
pub async fn find(paths: &Paths, name: &InstanceName) -> Found {
    if let Some(pid) = lock_holder(paths)
        && let Some(process) = Process::find(pid).await
    {
        return if is(process.command_line(), name) { Found::Ours(process) } else { Found::Stranger(pid) };
    }
    // It starts and has no pid file yet, or it ends and has none any more, or somebody removed it.
    for _ in 0..SCANS {
        let mut vanished = false;
        for (pid, command_line) in process::all().await {
            if !is(&command_line, name) {
                continue;
            }
            match Process::find(pid).await {
                Some(process) if is(process.command_line(), name) => return Found::Ours(process),
                _ => vanished = true,
            }
        }
        // One that daemonizes forks twice, and its child may have come after the list was made.
        if !vanished {
            break;
        }
    }
    Found::Nothing
}

/// Ids are unique among all hosts and times, so whoever carries both the id and the name is the instance.
fn is(command_line: &CommandLine, name: &InstanceName) -> bool {
    let id = &name.as_str()[InstanceName::PREFIX.len()..];
    let named = command_line.option("-name").is_some_and(|n| n.split(',').next() == Some(name.as_str()));
    named && command_line.has_option("-uuid", id)
}

fn lock_holder(paths: &Paths) -> Option<i32> {
    let mut file = File::options().read(true).write(true).open(paths.pid()).ok()?;
    let holder = fcntl_getlk(&file, &Flock::from(FlockType::WriteLock)).ok()??;
    match holder.pid {
        Some(pid) => Some(pid.as_raw_nonzero().get()),
        // Somebody outside of our container holds it: the number it wrote is all there is.
        None => {
            let mut text = String::new();
            file.read_to_string(&mut text).ok()?;
            text.trim().parse().ok()
        }
    }
}

/// The guest as QEMU describes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Status {
    /// `running`, `paused`, `internal-error`, …
    pub state: String,
    pub ssh_port: Option<u16>,
}

pub async fn status(paths: &Paths) -> Result<Status, QmpError> {
    let mut qmp = Client::connect(&paths.qmp(), PATIENCE).await?;
    let status = qmp.execute("query-status", None).await?;
    let state = status.get("status").and_then(Value::as_str).unwrap_or_default().to_owned();
    let ssh_port = usernet::forwarded_port(&qmp.human("info usernet").await?, 22);
    Ok(Status { state, ssh_port })
}

/// Whether the guest behind this socket is this one. A second QEMU takes a live socket's path over without a word.
pub async fn answers_as(paths: &Paths, name: &InstanceName) -> Result<bool, QmpError> {
    let mut qmp = Client::connect(&paths.qmp(), PATIENCE).await?;
    let reply = qmp.execute("query-uuid", None).await?;
    let uuid = reply.get("UUID").and_then(Value::as_str).unwrap_or_default();
    Ok(name.as_str().strip_prefix(InstanceName::PREFIX) == Some(uuid))
}

/// Presses the power button. Whether the guest listens is its own affair.
pub async fn power_down(paths: &Paths) -> Result<(), QmpError> {
    Client::connect(&paths.qmp(), PATIENCE).await?.execute("system_powerdown", None).await.map(|_| ())
}

pub async fn quit(paths: &Paths) -> Result<(), QmpError> {
    match Client::connect(&paths.qmp(), PATIENCE).await?.execute("quit", None).await {
        // It may be gone before its reply has left.
        Ok(_) | Err(QmpError::Closed | QmpError::Io(_)) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Lets a paused guest go on. A request that failed is made again.
pub async fn resume(paths: &Paths) -> Result<(), QmpError> {
    Client::connect(&paths.qmp(), PATIENCE).await?.execute("cont", None).await.map(|_| ())
}

/// Opens the watch socket once. From then on QEMU writes its events to that socket's log, whether or not anybody listens; and
/// nobody does, because QEMU would tell nothing between a listener's coming and its first command.
pub async fn arm_watch(paths: &Paths) -> Result<(), QmpError> {
    Client::connect(&paths.watch(), PATIENCE).await.map(|_| ())
}

/// What the log of the watch socket says of the latest run.
pub fn recorded_cause(paths: &Paths) -> Option<GoneCause> {
    qmp::last_cause(&String::from_utf8_lossy(&std::fs::read(paths.watch_log()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::VmId;

    #[test]
    fn only_the_same_id_and_name_is_the_instance() {
        let id = VmId::mint();
        let name = id.instance();
        let line = |named: &str, uuid: &str| {
            CommandLine::Exact(["qemu-system-x86_64", "-name", named, "-uuid", uuid].map(str::to_owned).into())
        };
        let (id, other) = (id.to_string(), VmId::mint());
        assert!(is(&line(&format!("{name},process=mayfly-vm"), &id), &name));
        assert!(is(&line(name.as_str(), &id), &name));
        assert!(!is(&line(name.as_str(), &other.to_string()), &name));
        assert!(!is(&line(other.instance().as_str(), &id), &name));
        assert!(!is(&line(&format!("{name}-2"), &id), &name));
    }
}
