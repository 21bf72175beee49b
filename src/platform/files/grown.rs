//! Files that another program writes, and that a guest can make grow.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// What is kept of a file that is cut, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptParts {
    pub beginning: u64,
    /// Needs a file system that can free space within a file; on others, only the beginning is kept.
    pub end: u64,
}

/// Cuts a file if it uses more than `limit` bytes on disk. Returns whether it did.
///
/// A program that appends continues at the new end. One that keeps an offset of its own continues there, and the part in
/// between is a hole that uses no space.
pub fn cut_above(path: &Path, limit: u64, kept: KeptParts) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_file() && found.blocks().saturating_mul(512) > limit => {
            let file = File::options().write(true).open(path)?;
            // What is appended meanwhile is behind the part that is freed.
            let until = found.len().saturating_sub(kept.end);
            if kept.end == 0 || !punch_hole(&file, kept.beginning, until.saturating_sub(kept.beginning)) {
                file.set_len(kept.beginning)?;
            }
            Ok(true)
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Frees the space of a part of a file, which reads as zeros then, if the system supports it. False: the content is
/// unchanged.
pub fn punch_hole(file: &File, offset: u64, size: u64) -> bool {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        size == 0 || fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, size).is_ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, offset, size);
        false
    }
}

/// The last bytes of a file, at most `limit`. `None`: there is no such file.
pub fn read_tail(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(limit)))?;
    let mut tail = Vec::new();
    file.take(limit).read_to_end(&mut tail)?;
    Ok(Some(tail))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use super::*;

    #[test]
    fn a_file_is_cut_when_it_uses_more_than_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        assert!(!cut_above(&path, 0, KeptParts::default()).unwrap());
        let mut appends = File::options().create(true).append(true).open(&path).unwrap();
        appends.write_all(&vec![b'a'; 1 << 20]).unwrap();
        assert!(!cut_above(&path, 2 << 20, KeptParts::default()).unwrap());
        assert!(cut_above(&path, 512 << 10, KeptParts { beginning: 10, end: 0 }).unwrap());
        appends.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"aaaaaaaaaanew");
        // A hole is no use of space.
        appends.write_at(b"far", 0).ok();
        let keeps_offset = File::options().write(true).open(&path).unwrap();
        keeps_offset.write_at(b"far", 64 << 20).unwrap();
        assert!(!cut_above(&path, 512 << 10, KeptParts::default()).unwrap());
        assert_eq!(read_tail(&path, 5).unwrap().unwrap(), b"\0\0far");
        assert_eq!(read_tail(&dir.path().join("none"), 5).unwrap(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_end_is_kept_while_the_file_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let text: Vec<u8> = (0..1 << 20).map(|n| b'a' + (n / 4096 % 26) as u8).collect();
        std::fs::write(&path, &text).unwrap();
        assert!(cut_above(&path, 512 << 10, KeptParts { beginning: 4096, end: 8192 }).unwrap());
        let left = std::fs::read(&path).unwrap();
        assert_eq!((&left[..4096], &left[(1 << 20) - 8192..]), (&text[..4096], &text[(1 << 20) - 8192..]));
        assert!(left[4096..(1 << 20) - 8192].iter().all(|byte| *byte == 0));
        assert!(!cut_above(&path, 64 << 10, KeptParts::default()).unwrap());
    }
}
