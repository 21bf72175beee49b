//! Files that another program appends to, and that somebody else can make grow.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// Cuts a file to its first `keep` bytes if it uses more than `limit` bytes on disk. Returns whether it did.
///
/// A program that appends continues at the new end. One that keeps an offset of its own continues there, and the part in
/// between is a hole that uses no space.
pub fn cut_above(path: &Path, limit: u64, keep: u64) -> io::Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(file) if file.is_file() && file.blocks().saturating_mul(512) > limit => {
            File::options().write(true).open(path)?.set_len(keep)?;
            Ok(true)
        }
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
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
        assert!(!cut_above(&path, 0, 0).unwrap());
        let mut appends = File::options().create(true).append(true).open(&path).unwrap();
        appends.write_all(&vec![b'a'; 1 << 20]).unwrap();
        assert!(!cut_above(&path, 2 << 20, 0).unwrap());
        assert!(cut_above(&path, 512 << 10, 10).unwrap());
        appends.write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"aaaaaaaaaanew");
        // A hole is no use of space.
        appends.write_at(b"far", 0).ok();
        let keeps_offset = File::options().write(true).open(&path).unwrap();
        keeps_offset.write_at(b"far", 64 << 20).unwrap();
        assert!(!cut_above(&path, 512 << 10, 0).unwrap());
        assert_eq!(read_tail(&path, 5).unwrap().unwrap(), b"\0\0far");
        assert_eq!(read_tail(&dir.path().join("none"), 5).unwrap(), None);
    }
}
