//! A VM's directory.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

use crate::{config::Config, failure::Failure, home::Home, locks};

pub const MISSING_FILES: &str = "VM is missing some of its files (config.json, disk.img or nvram.bin)";

pub struct Vm {
    pub name: String,
    pub dir: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Running,
    Suspended,
    Stopped,
}

impl State {
    pub fn as_str(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Suspended => "suspended",
            State::Stopped => "stopped",
        }
    }
}

impl Vm {
    pub fn at(dir: PathBuf, name: &str) -> Vm {
        Vm { name: name.to_owned(), dir }
    }

    /// Opens a local VM, which leaves a mark in its directory's times.
    pub fn open(home: &Home, name: &str) -> Result<Vm, Failure> {
        let vm = home.vm(name);
        if !vm.dir.exists() {
            return Err(Failure::missing(name));
        }
        if !vm.initialised() {
            return Err(Failure::runtime(MISSING_FILES));
        }
        touch(&vm.dir);
        Ok(vm)
    }

    pub fn config_path(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    pub fn nvram(&self) -> PathBuf {
        self.dir.join("nvram.bin")
    }

    pub fn snapshot(&self) -> PathBuf {
        self.dir.join("state.vzvmsave")
    }

    pub fn config(&self) -> Result<Config, Failure> {
        Config::read(&self.config_path())
    }

    pub fn initialised(&self) -> bool {
        [self.config_path(), self.disk(), self.nvram()].iter().all(|p| p.exists())
    }

    pub fn holder(&self) -> Option<i32> {
        locks::holder(&self.config_path())
    }

    pub fn state(&self) -> State {
        if self.holder().is_some() {
            State::Running
        } else if self.snapshot().exists() {
            State::Suspended
        } else {
            State::Stopped
        }
    }

    fn sum(&self, of: impl Fn(&fs::Metadata) -> u64) -> u64 {
        [self.config_path(), self.disk(), self.nvram()]
            .iter()
            .filter_map(|p| fs::metadata(p).ok())
            .map(|m| of(&m))
            .sum()
    }

    pub fn apparent_size(&self) -> u64 {
        self.sum(fs::Metadata::len)
    }

    pub fn allocated_size(&self) -> u64 {
        self.sum(|m| m.blocks() * 512)
    }

    pub fn accessed(&self) -> i64 {
        fs::metadata(&self.dir).map(|m| m.atime()).unwrap_or_default()
    }
}

/// The access time becomes now and, by a quirk, the modification time what the access time was.
pub fn touch(dir: &Path) {
    let Ok(meta) = fs::metadata(dir) else { return };
    let now = jiff::Timestamp::now();
    let times = Timestamps {
        last_access: Timespec { tv_sec: now.as_second(), tv_nsec: now.subsec_nanosecond().into() },
        last_modification: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() as _ },
    };
    let _ = utimensat(CWD, dir, &times, AtFlags::empty());
}
