//! Compresses a piece of a file and computes its digests, in bounded memory.

use std::{
    fs::File,
    io::{self, BufWriter, Read, Write},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{fs::SeekFrom, io::Errno};
use sha2::{Digest as _, Sha256};

use crate::{
    platform::files::SpaceGuard,
    registry::oci::{Digest, lz4, manifest::Blob},
    templates::manifest::FileEntry,
};

const BUFFER: usize = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub start: u64,
    pub size: u64,
}

/// Why a piece could not be compressed.
#[derive(Debug)]
pub(super) enum PackError {
    /// The file has changed since the template was created.
    Changed,
    Storage(io::Error),
}

impl From<io::Error> for PackError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => PackError::Changed,
            _ => PackError::Storage(error),
        }
    }
}

/// Reads a piece of a file, and hashes what is read.
struct PieceReader<'a> {
    file: &'a File,
    at: u64,
    left: u64,
    hasher: Sha256,
}

impl<'a> PieceReader<'a> {
    fn new(file: &'a File, range: Range) -> PieceReader<'a> {
        PieceReader { file, at: range.start, left: range.size, hasher: Sha256::new() }
    }
}

impl Read for PieceReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if wanted == 0 {
            return Ok(0);
        }
        let read = self.file.read_at(&mut buffer[..wanted], self.at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.hasher.update(&buffer[..read]);
        self.at += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}

/// The digest of a piece. `None`: it is a hole, so it is all zeros.
pub(super) fn hash(path: &Path, range: Range) -> io::Result<Option<Digest>> {
    let file = File::open(path)?;
    if is_hole(&file, range) {
        return Ok(None);
    }
    let mut reader = PieceReader::new(&file, range);
    drain(&mut reader, &AtomicBool::new(false))?;
    Ok(Some(Digest::finish(reader.hasher)))
}

pub(super) fn of_zeros(size: u64) -> Digest {
    let zeros = [0; 64 << 10];
    let mut hasher = Sha256::new();
    let mut left = size;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        hasher.update(&zeros[..n as usize]);
        left -= n;
    }
    Digest::finish(hasher)
}

/// Whether the file system reports that nothing was written there. It may not support that.
fn is_hole(file: &File, range: Range) -> bool {
    let inside = file.metadata().is_ok_and(|m| range.start + range.size <= m.len());
    match rustix::fs::seek(file, SeekFrom::Data(range.start)) {
        Ok(data) => inside && data >= range.start + range.size,
        Err(Errno::NXIO) => inside,
        Err(_) => false,
    }
}

/// Compresses a piece with this digest into a new file. Returns the blob.
pub(super) fn pack(
    path: &Path,
    range: Range,
    content: Digest,
    to: &Path,
    space: &SpaceGuard,
) -> Result<Blob, PackError> {
    let file = File::open(path)?;
    let mut reader = PieceReader::new(&file, range);
    // Left over from an earlier attempt.
    let out = space.writer(File::create(to)?);
    let mut writer = Hashing { to: BufWriter::with_capacity(BUFFER, out), hasher: Sha256::new() };
    let encoded = lz4::encode(&mut reader, &mut writer)?;
    if reader.left != 0 || Digest::finish(reader.hasher) != content {
        return Err(PackError::Changed);
    }
    Ok(Blob { digest: Digest::finish(writer.hasher), size: encoded.compressed })
}

struct Hashing<W> {
    to: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Whether a file matches the template's manifest.
pub(super) fn is_sound(path: &Path, entry: &FileEntry, stop: &AtomicBool) -> io::Result<bool> {
    let file = File::open(path)?;
    if file.metadata()?.len() != entry.size() {
        return Ok(false);
    }
    let sound = |start, size, sha256: &str| -> io::Result<bool> {
        let mut reader = PieceReader::new(&file, Range { start, size });
        drain(&mut reader, stop)?;
        Ok(Digest::finish(reader.hasher).hex() == sha256)
    };
    match entry {
        FileEntry::Whole { sha256, size } => sound(0, *size, sha256),
        FileEntry::Pieces { pieces, .. } => {
            let mut start = 0;
            for piece in pieces {
                if !sound(start, piece.size, &piece.sha256)? {
                    return Ok(false);
                }
                start += piece.size;
            }
            Ok(true)
        }
    }
}

fn drain(reader: &mut PieceReader<'_>, stop: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    while reader.read(&mut buffer)? > 0 {
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        registry::oci::lz4::Decoder,
        templates::manifest::{self, RecordedPiece},
    };

    fn content() -> Vec<u8> {
        (0..3_000_000_usize).map(|at| if at / 500_000 == 2 { 0 } else { (at % 251) as u8 }).collect()
    }

    #[test]
    fn a_piece_is_packed_and_unpacks_to_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (path, to) = (dir.path().join("disk"), dir.path().join("packed"));
        std::fs::write(&path, content()).unwrap();
        let space = SpaceGuard::new(dir.path().to_owned(), 0);
        let range = Range { start: 700_001, size: 1_000_000 };
        let plain = &content()[700_001..1_700_001];
        let digest = hash(&path, range).unwrap().unwrap();
        assert_eq!(digest, Digest::of(plain));
        let blob = pack(&path, range, digest, &to, &space).unwrap();
        let packed = std::fs::read(&to).unwrap();
        assert_eq!(blob, Blob { digest: Digest::of(&packed), size: packed.len() as u64 });
        let mut decoder = Decoder::new(range.size);
        let mut unpacked = Vec::new();
        decoder
            .push(&packed, &mut |bytes| {
                unpacked.extend_from_slice(bytes);
                Ok(())
            })
            .unwrap();
        decoder.finish().unwrap();
        assert!(unpacked == plain);
        // To the same path again, always with the same result.
        assert_eq!(pack(&path, range, digest, &to, &space).unwrap(), blob);
        assert!(matches!(pack(&path, range, Digest::of(b""), &to, &space), Err(PackError::Changed)));
        let beyond = Range { start: 2_900_000, size: 200_000 };
        assert!(matches!(pack(&path, beyond, digest, &to, &space), Err(PackError::Changed)));
        assert!(hash(&path, beyond).is_err());
    }

    #[test]
    fn holes_are_known_without_reading_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let file = File::create_new(&path).unwrap();
        file.write_all_at(b"head", 0).unwrap();
        file.set_len(8 << 20).unwrap();
        let range = |start: u64, size: u64| Range { start, size };
        // If the file system reports holes.
        if is_hole(&file, range(4 << 20, 1 << 20)) {
            assert_eq!(hash(&path, range(4 << 20, 4 << 20)).unwrap(), None);
            assert!(hash(&path, range(4 << 20, (4 << 20) + 1)).is_err());
        }
        assert!(hash(&path, range(0, 1 << 20)).unwrap().is_some());
        assert_eq!(of_zeros(100_000), Digest::of(&[0; 100_000]));
    }

    #[test]
    fn what_rots_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, content()).unwrap();
        let stop = AtomicBool::new(false);
        let whole = FileEntry::Whole { sha256: manifest::sha256(&content()), size: 3_000_000 };
        let pieces = content()
            .chunks(700_000)
            .map(|c| RecordedPiece { sha256: manifest::sha256(c), size: c.len() as u64 })
            .collect();
        let pieces = FileEntry::in_pieces(pieces);
        for entry in [&whole, &pieces] {
            assert!(is_sound(&path, entry, &stop).unwrap());
        }
        let mut bytes = content();
        bytes[2_999_999] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        for entry in [&whole, &pieces] {
            assert!(!is_sound(&path, entry, &stop).unwrap());
        }
        std::fs::write(&path, &content()[1..]).unwrap();
        assert!(!is_sound(&path, &whole, &stop).unwrap());
        stop.store(true, Ordering::Relaxed);
        std::fs::write(&path, content()).unwrap();
        assert!(is_sound(&path, &whole, &stop).is_err());
    }
}
