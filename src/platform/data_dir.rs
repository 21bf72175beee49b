//! The names of everything below the data directory.

use std::path::{Path, PathBuf};

#[derive(Clone, Debug)]
pub struct DataDir(PathBuf);

impl DataDir {
    const ADMIN_SOCKET: &str = "admin.sock";
    const GUEST_SOCKET: &str = "guest.sock";
    /// The directory's path may be so much shorter than a socket's.
    pub const LONGEST_SOCKET: usize = {
        let (admin, guest) = (Self::ADMIN_SOCKET.len(), Self::GUEST_SOCKET.len());
        if admin > guest { admin } else { guest }
    };

    pub fn new(path: impl Into<PathBuf>) -> DataDir {
        DataDir(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.at("mayfly.toml")
    }

    /// Locked by the process that serves this directory.
    pub fn lock(&self) -> PathBuf {
        self.at("serve.lock")
    }

    pub fn database(&self) -> PathBuf {
        self.at("mayfly.db")
    }

    /// Keeps disk space for the database; contains nothing.
    pub fn database_reserve(&self) -> PathBuf {
        self.at("database.reserve")
    }

    /// What secrets are encrypted with, and vms' tokens are made with.
    pub fn secret_key(&self) -> PathBuf {
        self.at("secret.key")
    }

    pub fn admin_token(&self) -> PathBuf {
        self.at("admin.token")
    }

    /// The socket of the admin API, for the command line on this machine.
    pub fn admin_socket(&self) -> PathBuf {
        self.at(Self::ADMIN_SOCKET)
    }

    pub fn guest_socket(&self) -> PathBuf {
        self.at(Self::GUEST_SOCKET)
    }

    /// The time at which the service was there last.
    pub fn heartbeat(&self) -> PathBuf {
        self.at("heartbeat")
    }

    pub fn templates(&self) -> PathBuf {
        self.at("templates")
    }

    /// Vms' logs.
    pub fn logs(&self) -> PathBuf {
        self.at("logs")
    }

    /// Archives of GitHub's runner.
    pub fn runner_archives(&self) -> PathBuf {
        self.at("runners")
    }

    /// Work space for objects in S3.
    pub fn s3(&self) -> PathBuf {
        self.at("s3")
    }

    /// QEMU's instances.
    pub fn qemu_instances(&self) -> PathBuf {
        self.at("instances")
    }

    /// What is known of QEMU's accelerators.
    pub fn qemu_probe(&self) -> PathBuf {
        self.at("qemu-probe.json")
    }

    /// Cloud Hypervisor's instances.
    pub fn cloud_hypervisor_instances(&self) -> PathBuf {
        self.at("cloud-hypervisor")
    }

    /// Instances of macosvm.
    pub fn macosvm(&self) -> PathBuf {
        self.at("macosvm")
    }

    /// What the driver for Tart keeps; also `TART_HOME` where nothing else is configured.
    pub fn tart(&self) -> PathBuf {
        self.at("tart")
    }
}
