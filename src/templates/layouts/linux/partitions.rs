//! Reads the partition table of a disk. The disk is untrusted: the table's claims are checked before memory is allocated for it.

use std::{fs::File, os::unix::fs::FileExt as _};

use gpt::{disk::LogicalBlockSize, header, mbr::ProtectiveMBR, partition};

pub const SECTOR: u64 = 512;
const MOST_PARTITIONS: u32 = 1024;
/// The only supported size of an entry, which the table's reader requires.
const ENTRY: u32 = 128;
/// Partition types of the older table: the one that stands for a GPT, and extended partitions.
const PROTECTIVE: u8 = 0xee;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// 0: the whole disk.
    pub number: u32,
    pub start: u64,
    pub bytes: u64,
    /// How the kernel identifies it without an initramfs.
    pub root: String,
}

/// The disk's partitions, or the disk itself if it has none.
pub fn partitions(disk: &File) -> Result<Vec<Partition>, String> {
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
