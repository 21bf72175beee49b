//! Extracts the kernel and the initramfs of a Linux guest from its disk, without mounting it and without root.
//!
//! The disk is untrusted. Its tables are checked against sane sizes before memory is allocated for them, and copies
//! have a size limit.

use std::{
    cmp::Ordering,
    fs::File,
    io::Write as _,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use ext4_view::{Ext4, Ext4Read};
use gpt::{disk::LogicalBlockSize, header, mbr::ProtectiveMBR, partition};

use super::invalid;
use crate::{
    domain::{Error, Result},
    platform::files::SpaceGuard,
    templates::catalog::storage,
};

const SECTOR: u64 = 512;
const MOST_PARTITIONS: u32 = 1024;
/// The only supported sector size, which the table's reader requires.
const ENTRY: u32 = 128;
const LARGEST_KERNEL: u64 = 256 << 20;
const LARGEST_INITRAMFS: u64 = 1 << 30;
/// Partition types of the older table: the one that stands for a GPT, and extended partitions.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Partition {
    /// 0: the whole disk.
    number: u32,
    start: u64,
    bytes: u64,
    /// How the kernel identifies it without an initramfs.
    root: String,
}

/// A part of a disk, read like a disk.
struct PartitionWindow {
    disk: File,
    start: u64,
    bytes: u64,
}

impl Ext4Read for PartitionWindow {
    fn read(&mut self, at: u64, into: &mut [u8]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = at.checked_add(into.len() as u64).filter(|end| *end <= self.bytes);
        if end.is_none() {
            return Err("the file system is larger than its partition".into());
        }
        Ok(self.disk.read_exact_at(into, self.start + at)?)
    }
}

/// Extracts the newest kernel from a raw disk.
pub(super) fn extract(disk: &Path, into: &Path, space: &SpaceGuard) -> Result<Extracted> {
    let file = File::open(disk).map_err(Error::internal)?;
    let mut systems = Vec::new();
    let all = partitions(&file).map_err(|what| invalid("disk", what))?;
    for partition in &all {
        let window = PartitionWindow {
            disk: file.try_clone().map_err(Error::internal)?,
            start: partition.start,
            bytes: partition.bytes,
        };
        if let Ok(system) = Ext4::load(Box::new(window)) {
            systems.push((partition, system));
        }
    }
    if systems.is_empty() {
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
    let newest = systems
        .iter()
        .flat_map(|(partition, system)| {
            ["/boot", "/"].into_iter().flat_map(move |dir| {
                kernels(system, dir).into_iter().map(move |version| (*partition, system, dir, version))
            })
        })
        .max_by(|a, b| by_version(&a.3, &b.3));
    let Some((partition, system, dir, version)) = newest else {
        return Err(invalid("disk", "has no kernel: neither /boot nor a partition of its own has a vmlinuz-*"));
    };
    // A separate /boot partition is not the root; the root contains the system's description.
    let root = systems
        .iter()
        .find(|(_, system)| {
            ["/etc/os-release", "/etc/fstab", "/sbin/init"].iter().any(|f| system.exists(*f).unwrap_or(false))
        })
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
    let initramfs = match names.into_iter().find(|name| is_file(system, &at(name))) {
        Some(name) => {
            let path = into.join("initramfs");
            copy(system, &at(&name), &path, LARGEST_INITRAMFS, space)?;
            Some((name, path))
        }
        None => None,
    };
    let place = match partition.number {
        0 => format!("{dir} of the disk"),
        number => format!("{dir} of partition {number}"),
    };
    Ok(Extracted { kernel, initramfs, name, place, root: root.root.clone() })
}

fn is_file(system: &Ext4, path: &str) -> bool {
    system.metadata(path).is_ok_and(|m| m.file_type().is_regular_file())
}

/// The versions of the kernels in a directory.
fn kernels(system: &Ext4, dir: &str) -> Vec<String> {
    let Ok(entries) = system.read_dir(dir) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().as_str().ok().map(str::to_owned));
    let version = |name: String| name.strip_prefix("vmlinuz-").map(str::to_owned);
    names
        .filter_map(version)
        // Rescue kernels.
        .filter(|v| !v.is_empty() && !v.contains("rescue") && !v.ends_with(".old"))
        .filter(|v| is_file(system, &format!("{}/vmlinuz-{v}", dir.trim_end_matches('/'))))
        .collect()
}

fn copy(system: &Ext4, from: &str, to: &Path, most: u64, space: &SpaceGuard) -> Result<()> {
    let broken = |error: ext4_view::Ext4Error| invalid("disk", format!("cannot be read at {from}: {error}"));
    let mut file = system.open(from).map_err(broken)?;
    if file.metadata().len() > most {
        return Err(invalid("disk", format!("has a {from} of {} bytes, which is none", file.metadata().len())));
    }
    let mut out = space.writer(File::create_new(to).map_err(storage)?);
    let mut block = vec![0; 256 << 10];
    let mut copied = 0;
    loop {
        let n = file.read_bytes(&mut block).map_err(broken)?;
        if n == 0 {
            break;
        }
        copied += n as u64;
        out.write_all(&block[..n]).map_err(storage)?;
    }
    if copied != file.metadata().len() || copied == 0 {
        return Err(invalid("disk", format!("has a {from} that is empty or cut off")));
    }
    Ok(())
}

/// The disk's partitions, or the disk itself if it has none.
fn partitions(disk: &File) -> Result<Vec<Partition>, String> {
    let length = disk.metadata().map_err(|error| format!("cannot be read: {}", error.kind()))?.len();
    let mut first = [0; SECTOR as usize];
    disk.read_exact_at(&mut first, 0).map_err(|_| "is too short for a disk".to_owned())?;
    let mut found = match ProtectiveMBR::from_bytes(&first, LogicalBlockSize::Lb512) {
        Ok(table) => {
            let records: Vec<_> = (0..4).filter_map(|n| table.partition(n)).collect();
            if records.iter().any(|record| record.os_type == PROTECTIVE) {
                newer_table(disk)?
            } else {
                let signature = u32::from_le_bytes(*table.disk_signature());
                older_table(&records, signature)
            }
        }
        Err(_) => Vec::new(),
    };
    found.retain(|p| p.bytes > 0 && p.start.checked_add(p.bytes).is_some_and(|end| end <= length));
    if found.is_empty() {
        // The first sector of a file system may end like a partition table.
        found.push(Partition { number: 0, start: 0, bytes: length, root: "/dev/vda".into() });
    }
    Ok(found)
}

fn older_table(records: &[gpt::mbr::PartRecord], signature: u32) -> Vec<Partition> {
    let mut found = Vec::new();
    for (number, record) in (1..).zip(records) {
        if record.os_type != 0 && !EXTENDED.contains(&record.os_type) {
            found.push(Partition {
                number,
                start: u64::from(record.lb_start) * SECTOR,
                bytes: u64::from(record.lb_size) * SECTOR,
                root: format!("PARTUUID={signature:08x}-{number:02x}"),
            });
        }
    }
    found
}

fn newer_table(disk: &File) -> Result<Vec<Partition>, String> {
    let broken = |what: String| format!("has a broken partition table: {what}");
    let mut disk = disk.try_clone().map_err(|error| broken(error.to_string()))?;
    let header = header::read_header_from_arbitrary_device(&mut disk, LogicalBlockSize::Lb512)
        .map_err(|error| broken(error.to_string()))?;
    if header.part_size != ENTRY || header.num_parts > MOST_PARTITIONS {
        return Err(broken(format!("{} entries of {} bytes", header.num_parts, header.part_size)));
    }
    let table = partition::file_read_partitions(&mut disk, &header, LogicalBlockSize::Lb512)
        .map_err(|error| broken(error.to_string()))?;
    let bytes = |p: &partition::Partition| {
        let start = p.first_lba.checked_mul(SECTOR)?;
        let end = p.last_lba.checked_add(1)?.checked_mul(SECTOR)?;
        Some((start, end.checked_sub(start)?))
    };
    Ok(table
        .iter()
        .filter_map(|(number, p)| {
            let (start, bytes) = bytes(p)?;
            Some(Partition { number: *number, start, bytes, root: format!("PARTUUID={}", p.part_guid.hyphenated()) })
        })
        .collect())
}

/// `6.8.0-90` is newer than `6.8.0-9`, and `6.8.0` than `6.8.0-rc1`.
fn by_version(one: &str, other: &str) -> Ordering {
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
