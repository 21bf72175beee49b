//! The files of an instance: one directory that only this user can access.

use std::path::{Path, PathBuf};

use crate::{
    domain::{Code, InstanceName, gateway::LogLimit},
    drivers::{
        DriverError, ErrorKind, Result,
        gateway::{GatewayFiles, MESSAGES_LIMIT},
    },
};

/// Linux allows 108 bytes including the final zero; macOS, where this program is only compiled, 104.
const SOCKET_PATH_LIMIT: usize = 103;

#[derive(Clone, Debug)]
pub struct VmmPaths {
    pub dir: PathBuf,
}

impl VmmPaths {
    pub fn new(instances_dir: &Path, name: &InstanceName) -> Self {
        Self { dir: instances_dir.join(name.as_str()) }
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

    /// The body of `vm.create`.
    pub fn config(&self) -> PathBuf {
        self.dir.join("vm.json")
    }

    /// The REST API of the hypervisor.
    pub fn api(&self) -> PathBuf {
        self.gateway().socket("api.sock", "a.sock")
    }

    /// What the supervisor is started with.
    pub fn supervisor_spec(&self) -> PathBuf {
        self.dir.join("supervisor.json")
    }

    /// Locked by the supervisor while it lives.
    pub fn supervisor_lock(&self) -> PathBuf {
        self.dir.join("supervisor.lock")
    }

    /// The hypervisor's process, by its pid and start time.
    pub fn process(&self) -> PathBuf {
        self.dir.join("hypervisor.process")
    }

    /// The hypervisor's events, one a line.
    pub fn events(&self) -> PathBuf {
        self.dir.join("events.log")
    }

    /// How the hypervisor ended.
    pub fn ended(&self) -> PathBuf {
        self.dir.join("ended.json")
    }

    /// Exists if this clone's guest was started, and is written just before that.
    pub fn started(&self) -> PathBuf {
        self.dir.join("started")
    }

    /// Exists if Mayfly ended the hypervisor.
    pub fn stopped_by_host(&self) -> PathBuf {
        self.dir.join("stopped-by-host")
    }

    pub fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Standard error of the supervisor and of the hypervisor.
    pub fn messages(&self) -> PathBuf {
        self.dir.join("hypervisor.log")
    }

    /// The files of the guest's network.
    pub fn gateway(&self) -> GatewayFiles {
        GatewayFiles::of(&self.dir)
    }

    /// The limits of all logs that the guest can make grow. The supervisor limits the events itself.
    pub fn log_limits(&self, console: u64) -> Vec<LogLimit> {
        let limit = |path, bytes| LogLimit { path, bytes, keep_beginning: 0, keep_end: 0 };
        vec![
            limit(self.console(), console),
            limit(self.messages(), MESSAGES_LIMIT),
            limit(self.gateway().log(), MESSAGES_LIMIT),
        ]
    }
}

/// Refuses a directory whose path is too long for the sockets of an instance.
pub fn check(instances_dir: &Path) -> Result<()> {
    let refuse = |summary| Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary));
    if !instances_dir.is_absolute() {
        return refuse(format!("the instances directory {} is not absolute", instances_dir.display()));
    }
    let Some(text) = instances_dir.to_str() else {
        return refuse(format!("the instances directory {} is not valid UTF-8", instances_dir.display()));
    };
    // Cloud Hypervisor splits option values at commas, and has no way to write a literal one without quotes.
    if text.contains([',', '"', '[', ']']) {
        return refuse(format!(
            "the instances directory {text} contains one of , \" [ ]: choose another data directory"
        ));
    }
    // The longest socket name, in the directory of an attempt whose number has three digits.
    let below = InstanceName::PREFIX.len() + 36 + "-999//a.sock".len();
    let longest = SOCKET_PATH_LIMIT - below;
    if text.len() > longest {
        return refuse(format!(
            "the path of the instances directory has {} bytes and may have {longest}, because systems limit the path of a \
             socket: choose a shorter data directory than {text}",
            text.len()
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
        let id = VmId::mint();
        let fits = PathBuf::from(format!("/{}", "d".repeat(47)));
        check(&fits).unwrap();
        for name in [id.instance(), id.instance_of(999)] {
            let paths = VmmPaths::new(&fits, &name);
            let sockets = [paths.api(), paths.gateway().link(), paths.gateway().ssh()];
            assert!(sockets.iter().all(|path| path.as_os_str().len() <= SOCKET_PATH_LIMIT), "{sockets:?}");
        }
        let error = check(&PathBuf::from(format!("/{}", "d".repeat(48)))).unwrap_err();
        assert!(error.summary.contains("has 49 bytes and may have 48"), "{error}");
        assert!(check(Path::new("/a,b")).unwrap_err().summary.contains("contains one of"));
        assert!(check(Path::new("instances")).is_err());
    }
}
