//! Reads files of an ext2, ext3 or ext4 file system that is untrusted.
//!
//! The reader of the file system trusts sizes that the file system states: it allocates memory for as many block groups,
//! and for as long a link, as is claimed. So the superblock is checked before, and no path with a link in it is given to the
//! reader: links are resolved here, after their length was checked. Everything is read through a [`ReadBudget`].

use std::{collections::VecDeque, fs::File, io::Write, sync::Arc};

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::partitions::Partition;
use crate::templates::read_budget::ReadBudget;

/// Offset and magic of the superblock.
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;
/// Largest shift of 1 KiB to the size of a block: Linux mounts no file system with larger blocks than 64 KiB.
const LARGEST_BLOCK: u32 = 6;
/// `mke2fs` makes no smaller groups of blocks.
const LEAST_GROUP: u32 = 256;
/// Linux's limit.
const LONGEST_LINK: u64 = 4096;
const MOST_LINKS: usize = 40;
/// Kernels in one directory.
const MOST_KERNELS: usize = 1024;
/// Names of a directory that are looked at.
const MOST_NAMES: usize = 65_536;
/// The journal has to be replayed before the file system is used.
const RECOVER: u32 = 0x4;
/// Block counts have 64 bits.
const WIDE: u32 = 0x80;

/// A part of a disk, read like a disk.
struct PartitionWindow {
    disk: File,
    start: u64,
    bytes: u64,
    budget: Arc<ReadBudget>,
}

impl Ext4Read for PartitionWindow {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.bytes);
        if end.is_none() {
            return Err("the file system is larger than its partition".into());
        }
        Ok(self.budget.read(&self.disk, into, self.start + at)?)
    }
}

pub struct GuestFileSystem {
    system: Ext4,
    budget: Arc<ReadBudget>,
    state: SystemState,
}

/// What the superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemState {
    /// It was unmounted, and its journal is empty.
    pub clean: bool,
    pub total_bytes: u64,
    pub free_bytes: u64,
}

/// A file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileDetails {
    pub is_dir: bool,
    pub mode: u16,
    pub uid: u32,
}

/// What a partition contains.
pub enum PartitionContent {
    /// No ext2, ext3 or ext4 file system.
    Other,
    /// One that cannot be read here, and why.
    Unreadable(String),
    System(Box<GuestFileSystem>),
}

/// Why a path leads to nothing.
#[derive(Debug)]
pub enum PathError {
    /// It does not exist, or its links do not end.
    Absent,
    /// The file system cannot be read there. So it is not known what is there.
    Unreadable(String),
}

impl PathError {
    fn of(error: &Ext4Error, path: &str) -> PathError {
        match error {
            Ext4Error::NotFound | Ext4Error::NotADirectory => PathError::Absent,
            other => PathError::Unreadable(format!("cannot be read at {path}: {other}")),
        }
    }

    /// An error only if it is not known.
    fn known<T>(self) -> Result<Option<T>, String> {
        match self {
            PathError::Absent => Ok(None),
            PathError::Unreadable(why) => Err(why),
        }
    }
}

impl GuestFileSystem {
    pub fn load(disk: File, partition: &Partition, budget: &Arc<ReadBudget>) -> PartitionContent {
        let &Partition { start, bytes, .. } = partition;
        let state = match superblock(&disk, start, bytes, budget) {
            Superblock::None => return PartitionContent::Other,
            Superblock::Wrong(why) => return PartitionContent::Unreadable(why.to_owned()),
            Superblock::Plausible(state) => state,
        };
        let window = PartitionWindow { disk, start, bytes, budget: budget.clone() };
        match Ext4::load(Box::new(window)) {
            Ok(system) => PartitionContent::System(Box::new(GuestFileSystem { system, budget: budget.clone(), state })),
            Err(error) => PartitionContent::Unreadable(error.to_string()),
        }
    }

    /// The same path without links.
    pub fn resolve(&self, path: &str) -> Result<String, PathError> {
        let mut left: VecDeque<String> = path.split('/').map(str::to_owned).collect();
        let mut real: Vec<String> = Vec::new();
        let mut links = 0;
        while let Some(name) = left.pop_front() {
            match name.as_str() {
                "" | "." => continue,
                ".." => {
                    real.pop();
                    continue;
                }
                _ => real.push(name),
            }
            let here = absolute(&real);
            let metadata = self.system.symlink_metadata(here.as_str()).map_err(|e| PathError::of(&e, &here))?;
            if !metadata.file_type().is_symlink() {
                continue;
            }
            links += 1;
            if links > MOST_LINKS || metadata.len() > LONGEST_LINK {
                return Err(PathError::Absent);
            }
            let target = self.system.read_link(here.as_str()).map_err(|e| PathError::of(&e, &here))?;
            let target = target.to_str().map_err(|_| PathError::Absent)?;
            real.pop();
            if target.starts_with('/') {
                real.clear();
            }
            for part in target.split('/').rev() {
                left.push_front(part.to_owned());
            }
            if left.len() > LONGEST_LINK as usize {
                return Err(PathError::Absent);
            }
        }
        Ok(absolute(&real))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path).is_ok()
    }

    pub fn is_file(&self, path: &str) -> Result<bool, String> {
        let real = match self.resolve(path) {
            Ok(real) => real,
            Err(error) => return error.known::<()>().map(|_| false),
        };
        let metadata = self.system.symlink_metadata(real.as_str());
        match metadata.map_err(|error| PathError::of(&error, &real)) {
            Ok(metadata) => Ok(metadata.file_type().is_regular_file()),
            Err(error) => error.known::<()>().map(|_| false),
        }
    }

    /// What a path leads to, through links. An error: it is not known.
    pub fn details(&self, path: &str) -> Result<Option<FileDetails>, String> {
        let real = match self.resolve(path) {
            Ok(real) => real,
            Err(error) => return error.known(),
        };
        let metadata = self.system.symlink_metadata(real.as_str()).map_err(|error| PathError::of(&error, &real));
        match metadata {
            Ok(found) => Ok(Some(FileDetails { is_dir: found.is_dir(), mode: found.mode(), uid: found.uid() })),
            Err(error) => error.known(),
        }
    }

    /// The target of a link; `None`: it is none.
    pub fn link(&self, path: &str) -> Result<Option<String>, String> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let here = match self.resolve(dir) {
            Ok(dir) => format!("{}/{name}", dir.trim_end_matches('/')),
            Err(error) => return error.known(),
        };
        match self.system.symlink_metadata(here.as_str()) {
            Ok(found) if found.is_symlink() && found.len() <= LONGEST_LINK => {
                let target = self.system.read_link(here.as_str());
                let target = target.map_err(|error| PathError::of(&error, &here));
                target.map_or_else(PathError::known, |target| Ok(target.to_str().ok().map(str::to_owned)))
            }
            Ok(_) => Ok(None),
            Err(error) => PathError::of(&error, &here).known(),
        }
    }

    /// The first bytes of a regular file, at most this many.
    pub fn beginning(&self, path: &str, most: u64) -> Result<Option<Vec<u8>>, String> {
        let real = match self.resolve(path) {
            Ok(real) => real,
            Err(error) => return error.known(),
        };
        let broken = |error: &dyn std::fmt::Display| format!("cannot be read at {real}: {error}");
        if !self.is_file(&real)? {
            return Ok(None);
        }
        let mut file = self.system.open(real.as_str()).map_err(|error| broken(&error))?;
        let mut bytes = vec![0; file.metadata().len().min(most) as usize];
        let mut read = 0;
        while read < bytes.len() {
            self.budget.check()?;
            match file.read_bytes(&mut bytes[read..]).map_err(|error| broken(&error))? {
                0 => break,
                n => read += n,
            }
        }
        bytes.truncate(read);
        Ok(Some(bytes))
    }

    /// The names in a directory, sorted, without `.` and `..`. At most [`MOST_NAMES`].
    pub fn names(&self, dir: &str) -> Result<Option<Vec<String>>, String> {
        let real = match self.resolve(dir) {
            Ok(real) => real,
            Err(error) => return error.known(),
        };
        let entries = match self.system.read_dir(real.as_str()) {
            Ok(entries) => entries,
            Err(error) => return PathError::of(&error, &real).known(),
        };
        let mut names = Vec::new();
        for entry in entries.take(MOST_NAMES) {
            let entry = entry.map_err(|error| format!("cannot be read at {real}: {error}"))?;
            names
                .extend(entry.file_name().as_str().ok().filter(|name| !matches!(*name, "." | "..")).map(str::to_owned));
        }
        names.sort();
        Ok(Some(names))
    }

    pub fn state(&self) -> SystemState {
        self.state
    }

    /// The versions of the kernels in a directory, which may be absent. An error: it cannot be read.
    pub fn kernels(&self, dir: &str) -> Result<Vec<String>, String> {
        let real = match self.resolve(dir) {
            Ok(real) => real,
            Err(error) => return Ok(error.known()?.unwrap_or_default()),
        };
        let entries = match self.system.read_dir(real.as_str()) {
            Ok(entries) => entries,
            Err(error) => return Ok(PathError::of(&error, &real).known()?.unwrap_or_default()),
        };
        let mut versions = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| format!("cannot be read at {real}: {error}"))?;
            let name = entry.file_name();
            let Some(version) = name.as_str().ok().and_then(|name| name.strip_prefix("vmlinuz-")) else { continue };
            // Rescue kernels.
            if version.is_empty() || version.contains("rescue") || version.ends_with(".old") {
                continue;
            }
            if versions.len() == MOST_KERNELS {
                break;
            }
            if self.is_file(&format!("{}/vmlinuz-{version}", dir.trim_end_matches('/')))? {
                versions.push(version.to_owned());
            }
        }
        Ok(versions)
    }

    /// Copies a file of at most this many bytes. An error of the kind [`CopyError::Write`] is the target's.
    pub fn copy(&self, from: &str, to: &mut dyn Write, most: u64) -> Result<(), CopyError> {
        let wrong = |what: String| CopyError::Source(what);
        let broken = |error: &dyn std::fmt::Display| CopyError::Source(format!("cannot be read at {from}: {error}"));
        let real = self.resolve(from).map_err(|error| match error {
            PathError::Absent => broken(&"it does not exist"),
            PathError::Unreadable(why) => wrong(why),
        })?;
        let mut file = self.system.open(real.as_str()).map_err(|error| broken(&error))?;
        let size = file.metadata().len();
        if size > most {
            return Err(wrong(format!("has a {from} of {size} bytes, which is none")));
        }
        let mut block = vec![0; 256 << 10];
        let mut copied = 0;
        loop {
            // Holes are not read from the disk.
            self.budget.check().map_err(wrong)?;
            let n = file.read_bytes(&mut block).map_err(|error| broken(&error))?;
            if n == 0 {
                break;
            }
            copied += n as u64;
            to.write_all(&block[..n]).map_err(CopyError::Write)?;
        }
        if copied != size || copied == 0 {
            return Err(wrong(format!("has a {from} that is empty or cut off")));
        }
        Ok(())
    }
}

#[derive(Debug)]
pub enum CopyError {
    /// What is wrong with the disk.
    Source(String),
    Write(std::io::Error),
}

fn absolute(parts: &[String]) -> String {
    format!("/{}", parts.join("/"))
}

enum Superblock {
    None,
    Wrong(&'static str),
    Plausible(SystemState),
}

/// Whether there is a superblock, and claims no more than the partition has.
fn superblock(disk: &File, start: u64, bytes: u64, budget: &ReadBudget) -> Superblock {
    if bytes < 2 * SUPERBLOCK {
        return Superblock::None;
    }
    let mut block = [0; 1024];
    if budget.read(disk, &mut block, start + SUPERBLOCK).is_err() {
        return Superblock::Wrong("its superblock cannot be read");
    }
    let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    if u16_at(56) != MAGIC {
        return Superblock::None;
    }
    let (shift, per_group) = (u32_at(24), u32_at(32));
    if shift > LARGEST_BLOCK || per_group < LEAST_GROUP {
        return Superblock::Wrong("its superblock is wrong");
    }
    // The upper half counts only with a feature; without it, it is zero.
    let blocks = u64::from(u32_at(4)) | u64::from(u32_at(336)) << 32;
    let Some(total_bytes) = blocks.checked_mul(1024 << shift).filter(|size| *size <= bytes) else {
        return Superblock::Wrong("it is larger than its partition");
    };
    let features = u32_at(96);
    let free_upper = if features & WIDE == 0 { 0 } else { u64::from(u32_at(344)) << 32 };
    let free = u64::from(u32_at(12)) | free_upper;
    Superblock::Plausible(SystemState {
        clean: u16_at(58) & 1 == 1 && features & RECOVER == 0,
        total_bytes,
        free_bytes: free.saturating_mul(1024 << shift).min(total_bytes),
    })
}
