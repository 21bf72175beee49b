//! The files of an instance: one directory that only this user can access.

use std::path::{Path, PathBuf};

use crate::{
    domain::{Code, InstanceName, gateway::LogLimit},
    drivers::{
        DriverError, ErrorKind, Result,
        gateway::{GatewayFiles, MESSAGES_LIMIT},
    },
};

/// macOS allows 104 bytes including the final zero, Linux 108. The smaller limit, so that a configuration works on
/// both.
pub const SOCKET_PATH_LIMIT: usize = 103;

/// Bytes of `watch_log` in which QEMU's greeting and its first reply are, which show that it reports events.
pub const WATCH_BEGINNING: u64 = 16 << 10;
/// Bytes at the end of `watch_log` in which the guest's end is found: after it, a guest causes no events.
pub const LATEST_EVENTS: u64 = 256 << 10;
/// Size on disk, in bytes, at which the log is cut. That of the console is a setting.
const WATCH_LIMIT: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub struct QemuPaths {
    pub dir: PathBuf,
}

impl QemuPaths {
    pub fn new(instances_dir: &Path, name: &InstanceName) -> Self {
        Self { dir: instances_dir.join(name.as_str()) }
    }

    fn socket(&self, first: &str, later: &str) -> PathBuf {
        self.gateway().socket(first, later)
    }

    /// The files of the guest's network.
    pub fn gateway(&self) -> GatewayFiles {
        GatewayFiles::of(&self.dir)
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2")
    }

    /// A clone under construction: it becomes `disk` by rename.
    pub fn unfinished_disk(&self) -> PathBuf {
        self.dir.join("disk.qcow2.tmp")
    }

    pub fn seed(&self) -> PathBuf {
        self.dir.join("seed.img")
    }

    pub fn pid(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    /// The process that holds the pid file, by its pid and start time.
    pub fn process(&self) -> PathBuf {
        self.dir.join("qemu.process")
    }

    /// For commands, one short connection each.
    pub fn qmp(&self) -> PathBuf {
        self.socket("qmp.sock", "q.sock")
    }

    /// For the listener that waits for a stop or the end: one long connection.
    pub fn live(&self) -> PathBuf {
        self.socket("live.sock", "l.sock")
    }

    /// Opened once after the start, so that QEMU writes its events to `watch_log`.
    pub fn watch(&self) -> PathBuf {
        self.socket("watch.sock", "w.sock")
    }

    /// All events of the guest, including its end while no listener was connected.
    pub fn watch_log(&self) -> PathBuf {
        self.dir.join("watch.log")
    }

    /// Exists if this clone's guest was started. Written while QEMU still holds the guest's processors: a start that
    /// was interrupted before that has started no guest.
    pub fn started(&self) -> PathBuf {
        self.dir.join("started")
    }

    /// The limits of all logs that the guest can make grow.
    pub fn log_limits(&self, console: u64) -> Vec<LogLimit> {
        let limit = |path, bytes| LogLimit { path, bytes, keep_beginning: 0, keep_end: 0 };
        let watch = LogLimit {
            keep_beginning: WATCH_BEGINNING,
            // The end of the guest may have been reported just now.
            keep_end: LATEST_EVENTS,
            ..limit(self.watch_log(), WATCH_LIMIT)
        };
        vec![
            limit(self.console(), console),
            watch,
            limit(self.errors(), MESSAGES_LIMIT),
            limit(self.gateway().log(), MESSAGES_LIMIT),
        ]
    }

    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Exists while the guest's accelerator is on trial.
    pub fn trial(&self) -> PathBuf {
        self.dir.join("trial.json")
    }

    /// QEMU's standard error.
    pub fn errors(&self) -> PathBuf {
        self.dir.join("qemu.log")
    }
}

/// Refuses a directory whose path is too long for the sockets of an instance.
pub fn check(instances_dir: &Path) -> Result<()> {
    let refuse = |summary| Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary));
    if !instances_dir.is_absolute() {
        return refuse(format!("the instances directory {} is not absolute", instances_dir.display()));
    }
    if instances_dir.to_str().is_none() {
        return refuse(format!("the instances directory {} is not valid UTF-8", instances_dir.display()));
    }
    // The longest socket name above, in a directory named after a vm.
    let below = InstanceName::PREFIX.len() + 36 + "//watch.sock".len();
    let longest = SOCKET_PATH_LIMIT - below;
    let length = instances_dir.as_os_str().len();
    if length > longest {
        return refuse(format!(
            "the path of the instances directory has {length} bytes and may have {longest}, because systems limit the \
             path of a socket: choose a shorter data directory than {}",
            instances_dir.display()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::VmId;

    #[test]
    fn the_longest_directory_still_holds_a_socket() {
        let name = VmId::mint().instance();
        let fits = PathBuf::from(format!("/{}", "d".repeat(47)));
        check(&fits).unwrap();
        assert_eq!(QemuPaths::new(&fits, &name).watch().as_os_str().len(), SOCKET_PATH_LIMIT);
        let retried = QemuPaths::new(&fits, &name.vm_id().instance_of(999));
        assert!([retried.watch(), retried.qmp()].iter().all(|path| path.as_os_str().len() <= SOCKET_PATH_LIMIT));

        let error = check(&PathBuf::from(format!("/{}", "d".repeat(48)))).unwrap_err();
        assert!(error.summary.contains("has 49 bytes and may have 48"), "{error}");
        assert_eq!(error.kind, ErrorKind::Host);
        assert!(check(Path::new("instances")).is_err());
    }
}
