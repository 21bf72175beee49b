//! Extracts the kernel and the initramfs of a Linux guest from its disk, without mounting it and without root.
//!
//! The disk is untrusted: its tables are checked before memory is allocated for them, the work on them is bounded by the
//! disk's size, and copies have a size limit.
//!
//! ```text
//! partitions    the partition table
//! file_system   files of an ext2, ext3 or ext4 file system
//! ```

pub(in crate::templates) mod file_system;
pub(in crate::templates) mod partitions;

use std::{
    cmp::Ordering,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use self::{
    file_system::{CopyError, GuestFileSystem, PartitionContent},
    partitions::partitions,
};
use super::invalid;
use crate::{
    domain::{Error, Result},
    platform::files::{self, SpaceGuard},
    templates::{
        catalog::storage,
        read_budget::{ReadBudget, StopFlag},
    },
};

const LARGEST_KERNEL: u64 = 256 << 20;
const LARGEST_INITRAMFS: u64 = 1 << 30;

#[derive(Debug)]
pub(super) struct Extracted {
    pub kernel: PathBuf,
    /// With its file name in the guest.
    pub initramfs: Option<(String, PathBuf)>,
    /// Path of the kernel in the guest.
    pub name: String,
    /// The partition in which it was found.
    pub place: String,
    /// The value for `root=`.
    pub root: String,
}

/// Extracts the newest kernel from a raw disk.
pub(super) fn extract(disk: &Path, into: &Path, space: &SpaceGuard, stop: &StopFlag) -> Result<Extracted> {
    let file = files::open_regular(disk).map_err(|what| invalid("disk", what))?;
    let budget = Arc::new(ReadBudget::bounded_by(&file).map_err(Error::internal)?.until(stop));
    let mut systems = Vec::new();
    let mut unreadable = Vec::new();
    let all = partitions(&file).map_err(|what| invalid("disk", what))?;
    for partition in &all {
        let disk = file.try_clone().map_err(Error::internal)?;
        match GuestFileSystem::load(disk, partition, &budget) {
            PartitionContent::Other => {}
            PartitionContent::Unreadable(why) => unreadable.push(format!("{}: {why}", place_of(partition.number))),
            PartitionContent::System(system) => systems.push((partition, system)),
        }
    }
    budget.check().map_err(|what| invalid("disk", what))?;
    if systems.is_empty() && unreadable.is_empty() {
        return Err(invalid(
            "disk",
            format!(
                "has no ext2, ext3 or ext4 file system on {}: give the kernel in `kernel`",
                if all.len() == 1 && all[0].number == 0 {
                    "it".to_owned()
                } else {
                    format!("any of its {} partitions", all.len())
                }
            ),
        ));
    }
    let mut kernels = Vec::new();
    for (partition, system) in &systems {
        for dir in ["/boot", "/"] {
            match system.kernels(dir) {
                Ok(versions) => kernels.extend(versions.into_iter().map(|version| (*partition, system, dir, version))),
                Err(why) => unreadable.push(format!("{}: {why}", place_of(partition.number))),
            }
        }
    }
    budget.check().map_err(|what| invalid("disk", what))?;
    let Some((partition, system, dir, version)) = kernels.into_iter().max_by(|a, b| by_version(&a.3, &b.3)) else {
        if !unreadable.is_empty() {
            let why = unreadable.join("; ");
            let what = format!("has a file system that cannot be read here ({why}): give the kernel in `kernel`");
            return Err(invalid("disk", what));
        }
        return Err(invalid("disk", "has no kernel: neither /boot nor a partition of its own has a vmlinuz-*"));
    };
    // A separate /boot partition is not the root; the root contains the system's description.
    let root = systems
        .iter()
        .find(|(_, system)| ["/etc/os-release", "/etc/fstab", "/sbin/init"].iter().any(|f| system.exists(f)))
        .map_or(partition, |(partition, _)| *partition);
    let at = |name: &str| format!("{}/{name}", dir.trim_end_matches('/'));
    let name = format!("vmlinuz-{version}");
    let kernel = into.join("kernel");
    copy(system, &at(&name), &kernel, LARGEST_KERNEL, space)?;
    let names = [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
        format!("initramfs-{version}"),
        format!("initrd-{version}"),
        format!("initrd-{version}.img"),
    ];
    let mut there = None;
    for name in names {
        if system.is_file(&at(&name)).map_err(|why| invalid("disk", why))? {
            there = Some(name);
            break;
        }
    }
    let initramfs = match there {
        Some(name) => {
            let path = into.join("initramfs");
            copy(system, &at(&name), &path, LARGEST_INITRAMFS, space)?;
            Some((name, path))
        }
        None => None,
    };
    let place = format!("{dir} of {}", place_of(partition.number));
    Ok(Extracted { kernel, initramfs, name, place, root: root.root.clone() })
}

fn place_of(partition: u32) -> String {
    match partition {
        0 => "the disk".to_owned(),
        number => format!("partition {number}"),
    }
}

fn copy(system: &GuestFileSystem, from: &str, to: &Path, most: u64, space: &SpaceGuard) -> Result<()> {
    let mut out = space.writer(File::create_new(to).map_err(storage)?);
    system.copy(from, &mut out, most).map_err(|error| match error {
        CopyError::Source(what) => invalid("disk", what),
        CopyError::Write(error) => storage(error),
    })
}

/// `6.8.0-90` is newer than `6.8.0-9`, and `6.8.0` than `6.8.0-rc1`.
pub(super) fn by_version(one: &str, other: &str) -> Ordering {
    let (one, other) = (pieces(one), pieces(other));
    one.cmp(&other)
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum VersionPart {
    /// `-rc` and `~` sort before the end.
    Before(String),
    End,
    Text(String),
    Number(u128),
}

fn pieces(version: &str) -> Vec<VersionPart> {
    let mut pieces = Vec::new();
    let mut rest = version;
    while let Some(first) = rest.chars().next() {
        let digits = first.is_ascii_digit();
        let end = rest.find(|c: char| c.is_ascii_digit() != digits).unwrap_or(rest.len());
        let (piece, after) = rest.split_at(end);
        rest = after;
        pieces.push(match piece.parse() {
            Ok(number) => VersionPart::Number(number),
            Err(_) if piece.starts_with("-rc") || piece.starts_with('~') => VersionPart::Before(piece.to_owned()),
            Err(_) => VersionPart::Text(piece.to_owned()),
        });
    }
    pieces.push(VersionPart::End);
    pieces
}

#[cfg(test)]
mod tests;
