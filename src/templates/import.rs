//! Copies a file into the catalog: as a clone where the file system supports it, otherwise without its holes. Hashes
//! it in both cases.

use std::{
    fs::{self, File},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use sha2::{Digest as _, Sha256};

use crate::platform::files::SpaceGuard;

const BLOCK: usize = 256 << 10;

/// The written data: the manifest describes this, and not the current content of the source.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Imported {
    pub sha256: String,
    pub size: u64,
}

/// Creates `to`, flushed to disk, from an open file.
pub(super) fn import(from: &File, to: &Path, mode: u32, space: &SpaceGuard) -> io::Result<Imported> {
    let expected = from.metadata()?.len();
    let imported = if reflink_copy::reflink_file_to_path(from, to).is_ok() {
        transfer(&File::open(to)?, None, space)?
    } else {
        // A refused clone may have left its empty target.
        let _ = fs::remove_file(to);
        transfer(from, Some(&File::create_new(to)?), space)?
    };
    let file = File::open(to)?;
    if imported.size != expected || file.metadata()?.len() != expected {
        return Err(io::Error::other("it changed while it was read"));
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()?;
    Ok(imported)
}

/// Reads a file from its start, hashes it and writes it to `to`, leaving holes for blocks of zeros.
fn transfer(mut from: &File, to: Option<&File>, space: &SpaceGuard) -> io::Result<Imported> {
    from.seek(SeekFrom::Start(0))?;
    let mut block = vec![0; BLOCK];
    let mut hasher = Sha256::new();
    let mut size = 0;
    loop {
        let n = fill(&mut from, &mut block)?;
        let bytes = &block[..n];
        hasher.update(bytes);
        if let Some(mut to) = to {
            if bytes.iter().all(|&b| b == 0) {
                to.seek(SeekFrom::Current(n as i64))?;
            } else {
                space.write(n, || to.write_all(bytes))?;
            }
        }
        size += n as u64;
        if n < BLOCK {
            break;
        }
    }
    if let Some(to) = to {
        // A hole at the end exists only after the length is set.
        to.set_len(size)?;
    }
    Ok(Imported { sha256: hex::encode(hasher.finalize()), size })
}

fn fill(from: &mut impl Read, block: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < block.len() {
        match from.read(&mut block[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::templates::manifest::sha256;

    fn unlimited(dir: &tempfile::TempDir) -> SpaceGuard {
        SpaceGuard::new(dir.path().to_owned(), 0)
    }

    #[test]
    fn the_copy_is_equal_hashed_and_as_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        let mut file = File::create_new(&from).unwrap();
        file.write_all(b"head").unwrap();
        file.seek(SeekFrom::Start(40 << 20)).unwrap();
        file.write_all(b"middle").unwrap();
        file.set_len((64 << 20) + 512).unwrap();

        let to = dir.path().join("to");
        let imported = import(&File::open(&from).unwrap(), &to, 0o444, &unlimited(&dir)).unwrap();
        let bytes = fs::read(&to).unwrap();
        assert!(bytes == fs::read(&from).unwrap());
        assert_eq!(imported, Imported { sha256: sha256(&bytes), size: (64 << 20) + 512 });
        let metadata = fs::metadata(&to).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o444);
        assert!(metadata.blocks() * 512 < 2 << 20, "{} blocks", metadata.blocks());
    }

    #[test]
    fn digests_are_the_known_ones() {
        assert_eq!(sha256(b"abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for content in [vec![], vec![7; BLOCK], vec![0; BLOCK], vec![7; BLOCK + 1]] {
            fs::write(&from, &content).unwrap();
            let imported = import(&File::open(&from).unwrap(), &to, 0o600, &unlimited(&dir)).unwrap();
            assert_eq!(imported, Imported { sha256: sha256(&content), size: content.len() as u64 });
            assert!(fs::read(&to).unwrap() == content);
            fs::remove_file(&to).unwrap();
        }
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::write(&from, "new").unwrap();
        fs::create_dir(&to).unwrap();
        assert!(import(&File::open(&from).unwrap(), &to, 0o444, &unlimited(&dir)).is_err());
    }
}
