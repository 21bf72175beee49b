//! Clones a template's files for an instance: copy-on-write, or as a copy that keeps holes.

use std::{
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{FileExt, PermissionsExt},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::{fs::SeekFrom, io::Errno};

use super::{DriverError, ErrorKind, Result, failure};
use crate::{domain::Code, platform::files};

const CHUNK: usize = 1 << 20;

/// How a file was cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloneMethod {
    /// Its blocks are shared with the template until they are written.
    CopyOnWrite,
    Copy,
}

/// What to do if a disk cannot be cloned copy-on-write.
#[derive(Clone, Copy, Debug)]
pub enum WithoutClones {
    Copy,
    /// An error with this instruction.
    Refuse {
        remedy: &'static str,
    },
}

/// Clones a template's disk, which may be too large to be copied without being asked.
pub fn clone_disk(from: &Path, to: &Path, without: WithoutClones, given_up: &AtomicBool) -> Result<CloneMethod> {
    match clone_file(from, to, matches!(without, WithoutClones::Copy), given_up) {
        Ok(CloneMethod::Copy) => {
            tracing::debug!(from = %from.display(), to = %to.display(), "copied the disk, because its file system does not support clones");
            Ok(CloneMethod::Copy)
        }
        Ok(method) => Ok(method),
        Err(error) if cannot_clone(&error) => {
            let remedy = match without {
                WithoutClones::Refuse { remedy } => format!(": {remedy}"),
                WithoutClones::Copy => String::new(),
            };
            let summary =
                format!("the template's disk {} cannot be cloned to {}{remedy}", from.display(), to.display());
            Err(DriverError::new(ErrorKind::Host, Code::CloneFailed, summary).source(error))
        }
        Err(error) => Err(failure::io(error, Code::CloneFailed, "the template's disk cannot be cloned")),
    }
}

/// Clones one file, or copies it if that is not possible and `copy` allows it. The template's files are read-only,
/// the clone's are not.
pub fn clone_file(from: &Path, to: &Path, copy: bool, given_up: &AtomicBool) -> io::Result<CloneMethod> {
    let method = match reflink_copy::reflink(from, to) {
        Ok(()) => CloneMethod::CopyOnWrite,
        Err(error) if copy && cannot_clone(&error) => {
            sparse_copy(from, to, given_up)?;
            CloneMethod::Copy
        }
        Err(error) => return Err(error),
    };
    fs::set_permissions(to, Permissions::from_mode(0o600))?;
    Ok(method)
}

/// Another volume, or a file system without clones.
fn cannot_clone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    // On Linux, two of these have the same value.
    let cannot = [Errno::XDEV, Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOTTY, Errno::INVAL, Errno::NOSYS];
    errno.is_some_and(|errno| cannot.contains(&errno))
}

/// Copies a file without its holes. A disk of a hundred gigabytes usually contains only a few.
fn sparse_copy(from: &Path, to: &Path, given_up: &AtomicBool) -> io::Result<()> {
    let source = File::open(from)?;
    let target = files::create_private(to)?;
    let length = source.metadata()?.len();
    target.set_len(length)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let (begin, end) = match rustix::fs::seek(&source, SeekFrom::Data(at)) {
            Ok(begin) => (begin, rustix::fs::seek(&source, SeekFrom::Hole(begin))?),
            Err(Errno::NXIO) => break,
            // The file system does not report holes.
            Err(_) => (at, length),
        };
        at = begin;
        while at < end {
            if given_up.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the copy was cancelled"));
            }
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let got = source.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the template's disk became shorter"));
            }
            target.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn disk(dir: &Path) -> PathBuf {
        let path = dir.join("disk");
        let disk = File::options().write(true).create_new(true).open(&path).unwrap();
        disk.set_len(64 << 20).unwrap();
        disk.write_all_at(b"begin", 0).unwrap();
        path
    }

    #[test]
    fn a_cancelled_copy_ends() {
        let dir = tempfile::tempdir().unwrap();
        let error = sparse_copy(&disk(dir.path()), &dir.path().join("copy"), &AtomicBool::new(true)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn without_leave_to_copy_the_remedy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (disk(dir.path()), dir.path().join("copy"));
        let without = WithoutClones::Refuse { remedy: "move it" };
        match clone_disk(&from, &to, without, &AtomicBool::new(false)) {
            Ok(method) => assert_eq!(method, CloneMethod::CopyOnWrite, "this file system can clone"),
            Err(error) => {
                assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::CloneFailed));
                for part in [from.to_str().unwrap(), to.to_str().unwrap(), ": move it"] {
                    assert!(error.summary.contains(part), "{error}");
                }
            }
        }
    }
}
