//! The files of an instance.
//!
//! ```text
//! $TART_HOME/
//!     vms/<name>/               Tart's: config.json disk.img nvram.bin control.sock
//!     mayfly/staging/<name>-…/  a clone under construction; Tart ignores foreign directories of its home
//! <run_dir>/<name>/   0700      ours: its existence marks the instance as ours
//!     run.out run.err           0600, output of `tart run`
//!     <pid>.process             0600, a `tart run` that we started: its pid and start time
//!     started                   the guest was started: it is not started again
//!     leases.before             the guest's leases before it was started
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use super::settings::Settings;
use crate::{domain::InstanceName, drivers::record};

#[derive(Clone, Debug)]
pub struct TartPaths {
    /// Tart's directory of the VM.
    pub vm: PathBuf,
    /// Our directory of its runs.
    pub run: PathBuf,
}

impl TartPaths {
    pub fn new(settings: &Settings, name: &InstanceName) -> Self {
        Self { vm: vms(&settings.tart_home).join(name.as_str()), run: settings.run_dir.join(name.as_str()) }
    }

    pub fn config(&self) -> PathBuf {
        self.vm.join(CONFIG)
    }

    /// The socket of the guest agent, while the VM runs on macOS 14 or later.
    pub fn control_sock(&self) -> PathBuf {
        self.vm.join("control.sock")
    }

    pub fn out(&self) -> PathBuf {
        self.run.join("run.out")
    }

    pub fn err(&self) -> PathBuf {
        self.run.join("run.err")
    }

    pub fn process(&self, pid: i32) -> PathBuf {
        self.run.join(format!("{pid}.{}", record::EXTENSION))
    }

    /// Exists if this clone's guest was started. Written once it runs: a start that was interrupted before that has
    /// started no job, because the guest asks the service for permission first.
    pub fn started(&self) -> PathBuf {
        self.run.join("started")
    }

    /// Exists if this clone's guest was reached, so it ran.
    pub fn reached(&self) -> PathBuf {
        self.run.join("reached")
    }

    pub fn leases_before(&self) -> PathBuf {
        self.run.join("leases.before")
    }

    /// The first missing one of the files that Tart requires in a VM.
    pub fn missing(&self) -> io::Result<Option<&'static str>> {
        for file in VM_FILES {
            match self.vm.join(file).metadata() {
                Ok(meta) if meta.is_file() => {}
                Ok(_) => return Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(file)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}

pub const CONFIG: &str = "config.json";
pub const DISK: &str = "disk.img";
pub const NVRAM: &str = "nvram.bin";
const VM_FILES: [&str; 3] = [CONFIG, DISK, NVRAM];

pub fn vms(tart_home: &Path) -> PathBuf {
    tart_home.join("vms")
}

pub fn staging(tart_home: &Path) -> PathBuf {
    tart_home.join("mayfly").join("staging")
}
