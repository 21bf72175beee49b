//! The file system of a Linux guest, for checks: what is absent, what is there, and what cannot be read.

use std::{cell::RefCell, path::Path, sync::Arc};

use crate::{
    platform::files,
    templates::{
        layouts::linux::{
            file_system::{FileDetails, GuestFileSystem, PartitionContent, SystemState},
            partitions::partitions,
        },
        read_budget::{ReadBudget, StopFlag},
    },
};

/// Largest file that a check reads.
const LARGEST: u64 = 1 << 20;
/// Findings about unreadable files; there could be one for each path.
const MOST_UNREADABLE: usize = 5;

pub(super) struct GuestTree {
    system: GuestFileSystem,
    unreadable: RefCell<Vec<String>>,
}

impl GuestTree {
    /// The file system with the guest's `/etc` on a raw disk, or why there is none.
    pub fn open(disk: &Path, stop: &StopFlag) -> Result<GuestTree, String> {
        let file = files::open_regular(disk)?;
        let budget =
            ReadBudget::bounded_by(&file).map_err(|error| format!("cannot be read: {}", error.kind()))?.until(stop);
        let budget = Arc::new(budget);
        let mut why = Vec::new();
        for partition in partitions(&file)? {
            let disk = file.try_clone().map_err(|error| format!("cannot be read: {}", error.kind()))?;
            match GuestFileSystem::load(disk, &partition, &budget) {
                PartitionContent::Other => {}
                PartitionContent::Unreadable(what) => why.push(what),
                PartitionContent::System(system) if system.exists("/etc") => {
                    return Ok(GuestTree { system: *system, unreadable: RefCell::default() });
                }
                PartitionContent::System(_) => {}
            }
        }
        match why.first() {
            Some(why) => Err(format!("has a file system that cannot be read: {why}")),
            None => Err("has no ext2, ext3 or ext4 file system with a directory /etc".to_owned()),
        }
    }

    pub fn state(&self) -> SystemState {
        self.system.state()
    }

    /// What could not be read.
    pub fn unreadable(&self) -> Vec<String> {
        self.unreadable.borrow().clone()
    }

    fn known<T>(&self, read: Result<Option<T>, String>) -> Option<T> {
        read.unwrap_or_else(|why| {
            let mut unreadable = self.unreadable.borrow_mut();
            if unreadable.len() < MOST_UNREADABLE && !unreadable.contains(&why) {
                unreadable.push(why);
            }
            None
        })
    }

    /// What a path leads to, through links.
    pub fn details(&self, path: &str) -> Option<FileDetails> {
        self.known(self.system.details(path))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.details(path).is_some()
    }

    pub fn is_dir(&self, path: &str) -> bool {
        self.details(path).is_some_and(|found| found.is_dir)
    }

    /// Whether it is a file that may be run.
    pub fn is_program(&self, path: &str) -> bool {
        self.details(path).is_some_and(|found| !found.is_dir && found.mode & 0o111 != 0)
    }

    /// The first of these paths that may be run.
    pub fn first_program<'a>(&self, paths: &[&'a str]) -> Option<&'a str> {
        paths.iter().copied().find(|path| self.is_program(path))
    }

    /// The content of a file, as text. Larger files are cut.
    pub fn text(&self, path: &str) -> Option<String> {
        let bytes = self.known(self.system.beginning(path, LARGEST))?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The names in a directory, sorted.
    pub fn names(&self, dir: &str) -> Vec<String> {
        self.known(self.system.names(dir)).unwrap_or_default()
    }

    /// The target of a link, without following it.
    pub fn link(&self, path: &str) -> Option<String> {
        self.known(self.system.link(path))
    }

    /// Whether there is something at this path, be it a link that leads nowhere.
    pub fn is_there(&self, path: &str) -> bool {
        self.link(path).is_some() || self.exists(path)
    }
}
