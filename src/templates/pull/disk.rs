//! The disk file of a pull.
//!
//! It starts empty or, where the file system supports it, as a clone of the template that shares the most content
//! with this image, so that unchanged chunks need neither time nor space.
//!
//! Each layer is flushed before it counts, so caching its pages gives no advantage and evicts other data. Therefore
//! large runs bypass the cache where the file system allows it. A page is never written in both ways: incomplete pages
//! go through the cache.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, PermissionsExt as _},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::platform::files::{self, SpaceGuard};

/// Alignment of memory for writes that bypass the cache: no disk has larger sectors.
pub(super) const ALIGNMENT: usize = 4096;

/// Writes bypass the cache in aligned units of this size: no system has larger pages. Shorter runs go through the
/// cache, where the system combines them, because each direct write waits for the disk.
const GRAIN: usize = 64 << 10;

/// Size of a read that looks for existing content.
const LOOK: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Disk {
    file: File,
    /// The same file, opened to bypass the cache.
    direct: Option<File>,
    /// A file system may accept the flag and refuse the writes.
    refused: AtomicBool,
    space: SpaceGuard,
    /// Everything that this pull did not write is zeros.
    pub blank: bool,
}

impl Disk {
    /// Opens or creates it. `base`: a disk to clone, if it is created.
    pub fn open(path: &Path, size: u64, base: Option<&Path>, space: &SpaceGuard) -> io::Result<Disk> {
        let new = !path.exists();
        let cloned = new && base.is_some_and(|base| clone(base, path).is_ok());
        if !new || cloned {
            // Read-only, like templates, after an interrupted publishing.
            fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        }
        let mut options = files::private();
        options.read(true).write(true).create(true).truncate(false);
        let file = options.open(path)?;
        file.set_len(size)?;
        file.sync_all()?;
        let direct = direct(&mut options, path);
        Ok(Disk { file, direct, refused: AtomicBool::new(false), space: space.clone(), blank: new && !cloned })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// The guard that writers of this pull ask before they write.
    pub fn space(&self) -> &SpaceGuard {
        &self.space
    }

    /// Writes bytes at an offset. They bypass the cache if they are aligned in memory as on the disk.
    pub fn write(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.space.write(bytes.len(), || self.write_permitted(bytes, at))
    }

    fn write_permitted(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        let head = (GRAIN - at as usize % GRAIN) % GRAIN;
        let whole = bytes.len().saturating_sub(head) / GRAIN * GRAIN;
        let Some(direct) = &self.direct else { return self.file.write_all_at(bytes, at) };
        if whole == 0
            || !(bytes.as_ptr() as usize + head).is_multiple_of(ALIGNMENT)
            || self.refused.load(Ordering::Relaxed)
        {
            return self.file.write_all_at(bytes, at);
        }
        let (begins, ends) = (at + head as u64, at + (head + whole) as u64);
        self.file.write_all_at(&bytes[..head], at)?;
        self.file.write_all_at(&bytes[head + whole..], ends)?;
        let pages = &bytes[head..head + whole];
        match direct.write_all_at(pages, begins) {
            Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                self.refused.store(true, Ordering::Relaxed);
                self.file.write_all_at(pages, begins)
            }
            written => written,
        }
    }

    /// Makes a hole, if the system supports it. False: the content is unchanged.
    pub fn punch(&self, offset: u64, size: u64) -> bool {
        files::punch_hole(&self.file, offset, size)
    }

    /// Makes this range contain zeros, whatever it contained.
    pub fn zero(&self, offset: u64, size: u64) -> io::Result<()> {
        if self.punch(offset, size) {
            return Ok(());
        }
        self.read(offset, size, |bytes, at| {
            if bytes.iter().any(|&b| b != 0) { self.write(&vec![0; bytes.len()], at) } else { Ok(()) }
        })
    }

    /// Reads a chunk piece by piece.
    pub fn read(&self, offset: u64, size: u64, to: impl FnMut(&[u8], u64) -> io::Result<()>) -> io::Result<()> {
        read(&self.file, offset, size, to)
    }

    /// Lets a range share blocks with a range of this or another file. Nothing is checked, and failures are not
    /// reported, because the caller reads the range in any case.
    pub fn share(&self, from: &File, at: u64, offset: u64, size: u64) -> bool {
        let Ok(size) = size.try_into() else { return false };
        reflink_copy::ReflinkBlockBuilder::new(from, &self.file, size)
            .from_offset(at)
            .to_offset(offset)
            .reflink_block()
            .is_ok()
    }
}

/// Reads a chunk of a file piece by piece, with the offset of each piece.
pub(super) fn read(
    file: &File,
    offset: u64,
    size: u64,
    mut to: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut buffer = vec![0; LOOK.min(size as usize)];
    let mut at = offset;
    while at < offset + size {
        let n = (offset + size - at).min(buffer.len() as u64) as usize;
        file.read_exact_at(&mut buffer[..n], at)?;
        to(&buffer[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

fn clone(base: &Path, to: &Path) -> io::Result<()> {
    let base = File::open(base)?;
    // Protects the template from removal while it is read.
    base.try_lock_shared()?;
    let cloned = reflink_copy::reflink_file_to_path(&base, to);
    if cloned.is_err() {
        // A refused clone may have left its empty target.
        let _ = fs::remove_file(to);
    }
    cloned
}

#[cfg(target_os = "linux")]
fn direct(options: &mut OpenOptions, path: &Path) -> Option<File> {
    use std::os::unix::fs::OpenOptionsExt as _;

    options.custom_flags(rustix::fs::OFlags::DIRECT.bits() as i32).open(path).ok()
}

#[cfg(not(target_os = "linux"))]
fn direct(_: &mut OpenOptions, _: &Path) -> Option<File> {
    None
}

#[cfg(test)]
impl Disk {
    pub fn unlimited(path: &Path, size: u64, base: Option<&Path>) -> Disk {
        let dir = path.parent().unwrap().to_owned();
        Disk::open(path, size, base, &SpaceGuard::new(dir, 0)).unwrap()
    }

    /// Without bypassing the cache.
    pub fn cached(path: &Path, size: u64) -> Disk {
        Disk { direct: None, ..Disk::unlimited(path, size, None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are aligned like the offset.
    fn aligned(bytes: &[u8], at: u64) -> (Vec<u8>, usize) {
        let mut room = vec![0; bytes.len() + 2 * ALIGNMENT];
        let start = room.as_ptr().align_offset(ALIGNMENT) + at as usize % ALIGNMENT;
        room[start..start + bytes.len()].copy_from_slice(bytes);
        (room, start)
    }

    #[test]
    fn bytes_come_to_their_place_whichever_way_they_go() {
        // Not on a memory file system, which may not support bypassing the cache.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let content: Vec<u8> = (0..700_000_u32).flat_map(|n| n.to_le_bytes()).collect();
        let disk = Disk::unlimited(&dir.path().join("disk"), 3_000_000, None);
        assert!(disk.blank);
        // Two neighbours that share a page, and one that is not aligned in memory.
        let cut = 1_000_001;
        for part in [0..cut, cut..2_000_003, 2_000_003..2_800_000] {
            let (bytes, at) = (&content[part.clone()], part.start as u64);
            let (room, start) = aligned(bytes, at);
            disk.write(&room[start..start + bytes.len()], at).unwrap();
        }
        disk.write(&content[..300_001], 17).unwrap();
        let mut found = vec![1; 3_000_000];
        disk.file().read_exact_at(&mut found, 0).unwrap();
        let mut expected = content.clone();
        expected[17..300_018].copy_from_slice(&content[..300_001]);
        expected.resize(3_000_000, 0);
        assert!(found == expected);
        drop(disk);
        assert!(!Disk::unlimited(&dir.path().join("disk"), 3_000_000, None).blank);
    }

    #[test]
    fn zeros_are_made_of_anything() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::cached(&dir.path().join("disk"), 300_000);
        disk.write(&vec![7; 300_000], 0).unwrap();
        disk.zero(100_001, 100_000).unwrap();
        let mut found = vec![1; 300_000];
        disk.file().read_exact_at(&mut found, 0).unwrap();
        assert!(found == [vec![7; 100_001], vec![0; 100_000], vec![7; 99_999]].concat());
    }

    #[test]
    fn a_base_that_cannot_be_cloned_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::unlimited(&dir.path().join("disk"), 1000, Some(&dir.path().join("missing")));
        assert!(disk.blank);
        assert_eq!(disk.file().metadata().unwrap().len(), 1000);
    }
}
