//! The files of an instance.
//!
//! ```text
//! <instances>/staging/          clones under construction, and removed-mayfly-<vm id>, an instance while it is removed
//! <instances>/mayfly-<vm id>/   0700; of a later attempt mayfly-<vm id>-<attempt>/
//!     disk.img aux.img          the clones of the template's disk and auxiliary storage
//!     vm.json                   macosvm's description of the VM, written by us
//!     run.out run.err           0600, the output of macosvm
//!     <pid>.process             0600, a macosvm that we started: its pid and start time
//!     macosvm.pid               macosvm's own, from version 0.2-3 on; a killed one leaves it
//!     started                   the guest was started: it is not started again
//!     reached                   the guest was reached
//!     stopping                  Mayfly ended this run
//!     exit.json                 the exit status, if the service that started it observed the end
//!     leases.before             the guest's leases before it was started
//! ```

use std::{
    io,
    path::{Path, PathBuf},
};

use crate::domain::InstanceName;

pub const DESCRIPTION: &str = "vm.json";
pub const DISK: &str = "disk.img";
pub const AUX: &str = "aux.img";

#[derive(Clone, Debug)]
pub struct MacosvmPaths {
    pub dir: PathBuf,
}

impl MacosvmPaths {
    pub fn new(instances_dir: &Path, name: &InstanceName) -> Self {
        Self { dir: instances_dir.join(name.as_str()) }
    }

    pub fn description(&self) -> PathBuf {
        self.dir.join(DESCRIPTION)
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.join(DISK)
    }

    pub fn aux(&self) -> PathBuf {
        self.dir.join(AUX)
    }

    pub fn out(&self) -> PathBuf {
        self.dir.join("run.out")
    }

    pub fn err(&self) -> PathBuf {
        self.dir.join("run.err")
    }

    pub fn pid_file(&self) -> PathBuf {
        self.dir.join("macosvm.pid")
    }

    /// Exists if this clone's guest was started. Written once it runs: a start that was interrupted before that has
    /// started no job, because the guest asks the service for permission first.
    pub fn started(&self) -> PathBuf {
        self.dir.join("started")
    }

    /// Exists if this clone's guest was reached, so it ran.
    pub fn reached(&self) -> PathBuf {
        self.dir.join("reached")
    }

    pub fn stopping(&self) -> PathBuf {
        self.dir.join("stopping")
    }

    pub fn exit(&self) -> PathBuf {
        self.dir.join("exit.json")
    }

    pub fn leases_before(&self) -> PathBuf {
        self.dir.join("leases.before")
    }

    /// The first missing one of the files that macosvm needs. It would create an auxiliary storage that is missing.
    pub fn missing(&self) -> io::Result<Option<&'static str>> {
        for file in [DESCRIPTION, DISK, AUX] {
            match self.dir.join(file).metadata() {
                Ok(meta) if meta.is_file() => {}
                Ok(_) => return Ok(Some(file)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(file)),
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }
}
