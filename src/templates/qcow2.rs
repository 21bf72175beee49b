//! Validates a qcow2 file as a template's disk: complete, and without other files.
//!
//! A header can make the hypervisor open other files of the host (a backing file, an external data file). An
//! untrusted file could use this to read files that the guest must not see, so both are refused. The mapping tables
//! are checked, because a truncated download has a valid header.
//!
//! The size of the tables is what the file says, so their check is bounded by what is really there: no table is read
//! twice, and holes are not read.

use std::{collections::HashSet, fs::File, os::unix::fs::FileExt as _};

use super::read_budget::{ReadBudget, data_in};

const MAGIC: &[u8; 4] = b"QFI\xfb";

// Incompatible features (qcow2 specification, header version 3).
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION_TYPE: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;
const KNOWN: u64 = DIRTY | CORRUPT | EXTERNAL_DATA | COMPRESSION_TYPE | EXTENDED_L2;

const EXTENSION_END: u32 = 0;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// QEMU's own limit: 32 MiB.
const MOST_L1_ENTRIES: u64 = (32 << 20) / 8;

/// The first table is read in parts of this many bytes.
const L1_PART: usize = 64 << 10;

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
const COMPRESSED: u64 = 1 << 62;

pub(super) fn has_magic(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && &magic == MAGIC
}

/// Size of the disk in the guest, or the fault of the file with a remedy.
pub(super) fn check(file: &File, budget: &ReadBudget) -> Result<u64, String> {
    match read(file, budget)? {
        (_, Some(_)) => Err("has a backing file, flatten it with `qemu-img convert -O qcow2`".into()),
        (virtual_bytes, None) => Ok(virtual_bytes),
    }
}

/// The backing file's name in an image. Its existence is not checked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Backing {
    pub name: String,
    pub format: Option<String>,
}

/// The backing file of a valid image; `None`: it has none.
pub(super) fn layer(file: &File, budget: &ReadBudget) -> Result<Option<Backing>, String> {
    read(file, budget).map(|(_, backing)| backing)
}

fn read(file: &File, budget: &ReadBudget) -> Result<(u64, Option<Backing>), String> {
    let length = file.metadata().map_err(|e| format!("cannot be read: {e}"))?.len();
    if !has_magic(file) {
        return Err("is not a qcow2 image, set disk_format to raw if it is a raw one".into());
    }
    let mut header = [0; 112];
    // Version 2 headers have 72 bytes; a file always continues after them.
    file.read_exact_at(&mut header, 0).map_err(|_| truncated())?;
    let u32_at = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("4 bytes"));
    let u64_at = |at: usize| u64::from_be_bytes(header[at..at + 8].try_into().expect("8 bytes"));

    let version = u32_at(4);
    if version != 2 && version != 3 {
        return Err(format!("is qcow2 of version {version}, convert it with `qemu-img convert -O qcow2`"));
    }
    let (features, header_length) = if version == 3 { (u64_at(72), u64::from(u32_at(100))) } else { (0, 72) };
    let extensions = extensions(file, header_length)?;
    let backing = match u64_at(8) {
        0 => None,
        at => Some(Backing {
            name: text(file, at, u32_at(16)).ok_or("has a broken header: the name of its backing file")?,
            format: extensions
                .iter()
                .find(|e| e.kind == EXTENSION_BACKING_FORMAT)
                .map(|e| text(file, e.at, e.size).ok_or("has a broken header: the format of its backing file"))
                .transpose()?,
        }),
    };
    if features & EXTERNAL_DATA != 0 || extensions.iter().any(|e| e.kind == EXTENSION_DATA_FILE) {
        return Err("keeps its data in another file, flatten it with `qemu-img convert -O qcow2`".into());
    }
    if u32_at(32) != 0 {
        return Err("is encrypted, convert it with `qemu-img convert -O qcow2`".into());
    }
    if features & (DIRTY | CORRUPT) != 0 {
        return Err("was not closed cleanly, mend it with `qemu-img check -r all`".into());
    }
    if features & !KNOWN != 0 {
        return Err("uses features unknown here, convert it with `qemu-img convert -O qcow2`".into());
    }

    let virtual_bytes = u64_at(24);
    if virtual_bytes == 0 || virtual_bytes % 512 != 0 {
        return Err(format!("has a size of {virtual_bytes} bytes, it must be a multiple of 512"));
    }
    let bits = u32_at(20);
    if !(9..=21).contains(&bits) {
        return Err("has a broken header: impossible cluster size".into());
    }
    let tables = Tables {
        cluster_bits: bits,
        extended: features & EXTENDED_L2 != 0,
        virtual_bytes,
        l1_entries: u64::from(u32_at(36)),
        l1_offset: u64_at(40),
        refcount_offset: u64_at(48),
        refcount_clusters: u64::from(u32_at(56)),
    };
    tables.check(file, length, budget)?;
    Ok((virtual_bytes, backing))
}

/// QEMU's own limit of a name is 1023 bytes.
fn text(file: &File, at: u64, size: u32) -> Option<String> {
    let mut bytes = (1..1024).contains(&size).then(|| vec![0; size as usize])?;
    file.read_exact_at(&mut bytes, at).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

fn truncated() -> String {
    "is cut off, copy or download it again".to_owned()
}

struct Extension {
    kind: u32,
    at: u64,
    size: u32,
}

fn extensions(file: &File, header_length: u64) -> Result<Vec<Extension>, String> {
    let mut found = Vec::new();
    let mut at = header_length;
    loop {
        let mut head = [0; 8];
        file.read_exact_at(&mut head, at).map_err(|_| "has a broken header".to_owned())?;
        let kind = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let size = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
        if kind == EXTENSION_END {
            return Ok(found);
        }
        if found.len() == 64 {
            return Err("has a broken header".into());
        }
        found.push(Extension { kind, at: at + 8, size });
        at += 8 + u64::from(size).next_multiple_of(8);
    }
}

struct Tables {
    cluster_bits: u32,
    extended: bool,
    virtual_bytes: u64,
    l1_entries: u64,
    l1_offset: u64,
    refcount_offset: u64,
    refcount_clusters: u64,
}

impl Tables {
    /// Checks that every table and the start of every cluster is inside the file. (The last cluster may be short: data
    /// beyond the end reads as zeros.)
    fn check(&self, file: &File, length: u64, budget: &ReadBudget) -> Result<(), String> {
        let cluster = 1u64 << self.cluster_bits;
        let entry_bytes = if self.extended { 16 } else { 8 };
        let per_l2 = cluster / entry_bytes;
        let needed = self.virtual_bytes.div_ceil(cluster).div_ceil(per_l2);
        let inside = |offset: u64, bytes: u64| offset.checked_add(bytes).is_some_and(|end| end <= length);
        if self.l1_entries < needed
            || self.l1_entries > MOST_L1_ENTRIES
            || !inside(self.l1_offset, self.l1_entries * 8)
            || !inside(self.refcount_offset, self.refcount_clusters << self.cluster_bits)
        {
            return Err(truncated());
        }
        // Compressed clusters store the offset in fewer bits.
        let compressed_offset = (1u64 << (62 - (self.cluster_bits - 8))) - 1;
        let mut seen = HashSet::new();
        let mut at = self.l1_offset;
        let end = self.l1_offset + self.l1_entries * 8;
        let mut l1 = vec![0; L1_PART.min(self.l1_entries as usize * 8)];
        let mut table = vec![0; cluster as usize];
        while at < end {
            let part = &mut l1[..(end - at).min(L1_PART as u64) as usize];
            budget.read(file, part, at)?;
            at += part.len() as u64;
            for entry in part.as_chunks::<8>().0 {
                let l2 = u64::from_be_bytes(*entry) & OFFSET;
                if l2 == 0 {
                    continue;
                }
                if !l2.is_multiple_of(cluster) || !seen.insert(l2) {
                    return Err(
                        "has mapping tables that overlap, make a new image with `qemu-img convert -O qcow2`".into()
                    );
                }
                if !inside(l2, cluster) {
                    return Err(truncated());
                }
                // A hole is zeros: clusters that are not allocated.
                for data in data_in(file, l2..l2 + cluster) {
                    // Whole entries.
                    let data = data.start / entry_bytes * entry_bytes..data.end.next_multiple_of(entry_bytes);
                    let part = &mut table[..(data.end - data.start) as usize];
                    budget.read(file, part, data.start)?;
                    for entry in part.chunks_exact(entry_bytes as usize) {
                        let entry = u64::from_be_bytes(entry[..8].try_into().expect("8 bytes"));
                        let start = if entry & COMPRESSED != 0 { entry & compressed_offset } else { entry & OFFSET };
                        if start != 0 && start >= length {
                            return Err(truncated());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        path::Path,
        process::Command,
    };

    use super::*;

    fn qemu_img(args: &[&str], dir: &Path) {
        let out = Command::new("qemu-img").args(args).current_dir(dir).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }

    fn verdict(path: &Path) -> Result<u64, String> {
        let file = File::open(path).unwrap();
        check(&file, &ReadBudget::bounded_by(&file).unwrap())
    }

    /// 6 MiB of data, so that clusters can be missing.
    fn raw(dir: &Path) {
        let bytes: Vec<u8> = (0..6u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        fs::write(dir.join("raw"), bytes).unwrap();
    }

    #[test]
    fn every_kind_that_qemu_makes_is_understood() {
        let dir = tempfile::tempdir().unwrap();
        raw(dir.path());
        for (n, options) in [
            "compat=0.10",
            "compat=1.1",
            "compat=1.1,lazy_refcounts=on",
            "compat=1.1,cluster_size=512",
            "compat=1.1,cluster_size=2M",
            "compat=1.1,extended_l2=on,cluster_size=128k",
            "compat=1.1,compression_type=zstd",
        ]
        .iter()
        .enumerate()
        {
            let name = format!("{n}.qcow2");
            qemu_img(&["convert", "-O", "qcow2", "-o", options, "raw", &name], dir.path());
            assert_eq!(verdict(&dir.path().join(&name)), Ok(6 << 20), "{options}");
            let name = format!("{n}c.qcow2");
            qemu_img(&["convert", "-c", "-O", "qcow2", "-o", options, "raw", &name], dir.path());
            assert_eq!(verdict(&dir.path().join(&name)), Ok(6 << 20), "{options} compressed");
        }
        for size in ["512", "1G", "100G"] {
            qemu_img(&["create", "-q", "-f", "qcow2", "empty", size], dir.path());
            verdict(&dir.path().join("empty")).unwrap();
        }
    }

    #[test]
    fn what_opens_other_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        raw(dir.path());
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", "raw", "-F", "raw", "overlay"], dir.path());
        assert!(verdict(&dir.path().join("overlay")).unwrap_err().contains("backing file"));
        qemu_img(
            &["create", "-q", "-f", "qcow2", "-o", "data_file=data,data_file_raw=on", "outside", "1M"],
            dir.path(),
        );
        assert!(verdict(&dir.path().join("outside")).unwrap_err().contains("another file"));

        // The name of a data file without the feature bit is as dangerous.
        let path = dir.path().join("outside");
        OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[0; 8], 72).unwrap();
        assert!(verdict(&path).unwrap_err().contains("another file"));
    }

    #[test]
    fn a_file_that_was_cut_off_is_refused_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        raw(dir.path());
        for (name, flags) in [("plain", &["convert"][..]), ("packed", &["convert", "-c"][..])] {
            qemu_img(&[flags, &["-O", "qcow2", "raw", name]].concat(), dir.path());
            let path = dir.path().join(name);
            let length = fs::metadata(&path).unwrap().len();
            for cut in [0, 3, 50, 90, 4096, 70_000, 200_000, length / 2, length - (128 << 10)] {
                let copy = dir.path().join("copy");
                fs::copy(&path, &copy).unwrap();
                OpenOptions::new().write(true).open(&copy).unwrap().set_len(cut).unwrap();
                assert!(verdict(&copy).is_err(), "{name} cut at {cut} of {length}");
            }
        }
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        raw(dir.path());
        qemu_img(&["convert", "-O", "qcow2", "raw", "good"], dir.path());
        let lies: &[(u64, &[u8])] = &[
            (0, b"QFI\x00"),
            (4, &4u32.to_be_bytes()),
            (8, &1u64.to_be_bytes()),
            (20, &40u32.to_be_bytes()),
            (20, &0u32.to_be_bytes()),
            (24, &0u64.to_be_bytes()),
            (24, &513u64.to_be_bytes()),
            (24, &(!511u64).to_be_bytes()),
            (32, &2u32.to_be_bytes()),
            (36, &0u32.to_be_bytes()),
            (36, &u32::MAX.to_be_bytes()),
            (40, &(u64::MAX - 7).to_be_bytes()),
            (48, &(u64::MAX - 7).to_be_bytes()),
            (56, &u32::MAX.to_be_bytes()),
            (72, &2u64.to_be_bytes()),
            (72, &(1u64 << 40).to_be_bytes()),
            (100, &u32::MAX.to_be_bytes()),
        ];
        for (at, bytes) in lies {
            let copy = dir.path().join("copy");
            fs::copy(dir.path().join("good"), &copy).unwrap();
            OpenOptions::new().write(true).open(&copy).unwrap().write_all_at(bytes, *at).unwrap();
            assert!(verdict(&copy).is_err(), "{bytes:?} at {at}");
        }
    }

    /// The header, the first table and one second table of an image of 8 TiB; `place` is where each entry points.
    fn table_of_tables(path: &Path, place: impl Fn(u64) -> u64) {
        let (bits, entries) = (21_u32, 1_u64 << 4);
        let cluster = 1_u64 << bits;
        let virtual_bytes = entries * cluster * (cluster / 8);
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(path).unwrap();
        file.set_len((entries + 3) * cluster).unwrap();
        let mut header = vec![0; 112];
        header[..4].copy_from_slice(MAGIC);
        for (at, value) in [(4, 3), (20, bits), (36, entries as u32), (100, 104)] {
            header[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        for (at, value) in [(24, virtual_bytes), (40, cluster), (48, 0)] {
            header[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        file.write_all_at(&header, 0).unwrap();
        for n in 0..entries {
            file.write_all_at(&place(n).to_be_bytes(), cluster + n * 8).unwrap();
        }
    }

    #[test]
    fn tables_that_share_their_place_are_refused_and_not_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("shared");
        table_of_tables(&path, |_| 2 << 21);
        let file = File::open(&path).unwrap();
        let budget = ReadBudget::bounded_by(&file).unwrap();
        assert!(check(&file, &budget).unwrap_err().contains("overlap"));
        assert!(budget.done() < 4 << 20, "{} bytes were read", budget.done());
        // Not quite the same place.
        table_of_tables(&path, |n| (2 << 21) + n * 512);
        assert!(verdict(&path).unwrap_err().contains("overlap"));
    }

    /// The file is as long as it says, and almost nothing of it is there.
    #[test]
    fn holes_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        table_of_tables(&path, |n| (n + 2) << 21);
        let file = File::open(&path).unwrap();
        let budget = ReadBudget::bounded_by(&file).unwrap();
        check(&file, &budget).unwrap();
        assert!(budget.done() < 1 << 20, "{} bytes were read", budget.done());
        // Something in a hole is seen.
        let entry = OpenOptions::new().write(true).open(&path).unwrap();
        entry.write_all_at(&(1_u64 << 50).to_be_bytes(), (5 << 21) + 80_000).unwrap();
        assert!(verdict(&path).unwrap_err().contains("cut off"));
    }

    #[test]
    fn a_check_ends_when_it_is_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        raw(dir.path());
        qemu_img(&["convert", "-O", "qcow2", "raw", "good"], dir.path());
        let file = File::open(dir.path().join("good")).unwrap();
        let budget = ReadBudget::bounded_by(&file).unwrap();
        check(&file, &budget).unwrap();
        budget.stop().cancel();
        assert!(check(&file, &budget).unwrap_err().contains("cancelled"));
    }
}
