//! Reads files of an ext2, ext3 or ext4 file system that is untrusted.
//!
//! The reader of the file system trusts sizes that the file system states: it allocates memory for as many block groups,
//! and for as long a link, as is claimed. So the superblock is checked before, and no path with a link in it is given to the
//! reader: links are resolved here, after their length was checked. Everything is read through a [`Work`].

use std::{collections::VecDeque, fs::File, io::Write, sync::Arc};

use ext4_view::{Ext4, Ext4Read};

use super::partitions::Partition;
use crate::templates::work::Work;

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

/// A part of a disk, read like a disk.
struct PartitionWindow {
    disk: File,
    start: u64,
    bytes: u64,
    work: Arc<Work>,
}

impl Ext4Read for PartitionWindow {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.bytes);
        if end.is_none() {
            return Err("the file system is larger than its partition".into());
        }
        Ok(self.work.read(&self.disk, into, self.start + at)?)
    }
}

pub struct GuestFileSystem {
    system: Ext4,
    work: Arc<Work>,
}

impl GuestFileSystem {
    /// `None`: there is no file system in the partition that can be read.
    pub fn load(disk: File, partition: &Partition, work: &Arc<Work>) -> Option<GuestFileSystem> {
        let &Partition { start, bytes, .. } = partition;
        if !is_plausible(&disk, start, bytes, work)? {
            return None;
        }
        let window = PartitionWindow { disk, start, bytes, work: work.clone() };
        Some(GuestFileSystem { system: Ext4::load(Box::new(window)).ok()?, work: work.clone() })
    }

    /// The same path without links. `None`: it does not exist, or cannot be followed.
    pub fn resolve(&self, path: &str) -> Option<String> {
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
            let metadata = self.system.symlink_metadata(here.as_str()).ok()?;
            if !metadata.file_type().is_symlink() {
                continue;
            }
            links += 1;
            if links > MOST_LINKS || metadata.len() > LONGEST_LINK {
                return None;
            }
            let target = self.system.read_link(here.as_str()).ok()?;
            let target = target.to_str().ok()?;
            real.pop();
            if target.starts_with('/') {
                real.clear();
            }
            for part in target.split('/').rev() {
                left.push_front(part.to_owned());
            }
            if left.len() > LONGEST_LINK as usize {
                return None;
            }
        }
        Some(absolute(&real))
    }

    pub fn exists(&self, path: &str) -> bool {
        self.resolve(path).is_some()
    }

    pub fn is_file(&self, path: &str) -> bool {
        let Some(real) = self.resolve(path) else { return false };
        self.system.symlink_metadata(real.as_str()).is_ok_and(|m| m.file_type().is_regular_file())
    }

    /// The versions of the kernels in a directory.
    pub fn kernels(&self, dir: &str) -> Vec<String> {
        let Some(real) = self.resolve(dir) else { return Vec::new() };
        let Ok(entries) = self.system.read_dir(real.as_str()) else { return Vec::new() };
        // A directory whose entries cannot be read has no further ones.
        let names = entries.map_while(|entry| Some(entry.ok()?.file_name().as_str().ok().map(str::to_owned)));
        let version = |name: String| name.strip_prefix("vmlinuz-").map(str::to_owned);
        names
            .flatten()
            .filter_map(version)
            // Rescue kernels.
            .filter(|v| !v.is_empty() && !v.contains("rescue") && !v.ends_with(".old"))
            .take(MOST_KERNELS)
            .filter(|v| self.is_file(&format!("{}/vmlinuz-{v}", dir.trim_end_matches('/'))))
            .collect()
    }

    /// Copies a file of at most this many bytes. An error of the kind [`CopyError::Write`] is the target's.
    pub fn copy(&self, from: &str, to: &mut dyn Write, most: u64) -> Result<(), CopyError> {
        let wrong = |what: String| CopyError::Source(what);
        let broken = |error: &dyn std::fmt::Display| CopyError::Source(format!("cannot be read at {from}: {error}"));
        let real = self.resolve(from).ok_or_else(|| broken(&"it does not exist"))?;
        let mut file = self.system.open(real.as_str()).map_err(|error| broken(&error))?;
        let size = file.metadata().len();
        if size > most {
            return Err(wrong(format!("has a {from} of {size} bytes, which is none")));
        }
        let mut block = vec![0; 256 << 10];
        let mut copied = 0;
        loop {
            // Holes are not read from the disk.
            self.work.go_on().map_err(wrong)?;
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

/// Whether the superblock claims no more than the partition has. `None`: it cannot be read.
fn is_plausible(disk: &File, start: u64, bytes: u64, work: &Work) -> Option<bool> {
    if bytes < 2 * SUPERBLOCK {
        return Some(false);
    }
    let mut block = [0; 1024];
    work.read(disk, &mut block, start + SUPERBLOCK).ok()?;
    let u16_at = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let u32_at = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let (shift, per_group) = (u32_at(24), u32_at(32));
    if u16_at(56) != MAGIC || shift > LARGEST_BLOCK || per_group < LEAST_GROUP {
        return Some(false);
    }
    // The upper half counts only with a feature; without it, it is zero.
    let blocks = u64::from(u32_at(4)) | u64::from(u32_at(336)) << 32;
    Some(blocks.checked_mul(1024 << shift).is_some_and(|size| size <= bytes))
}
