//! Private files and directories, and atomic replacement of files.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

mod grown;
mod lock;
mod regular;
mod secret;
mod space;

/// Full disks, for tests of every layer.
#[cfg(test)]
#[path = "../../../tests/it/support/small_disk.rs"]
pub mod small_disk;

pub use grown::{KeptParts, cut_above, punch_hole, read_tail};
pub use lock::take_lock;
pub use regular::open_regular;
pub use secret::{read_secret, read_secret_if_present, read_secrets};
pub use space::{GuardedWriter, SpaceGuard, SpaceLow, SpacePermit, free};

/// Whether an error says that the system or this process lacks something now (descriptors, memory). It says nothing about
/// the file.
pub fn is_shortage(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN | Errno::INTR))
}

/// Options that create a file with mode 0600.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Creates a file with mode 0600. Fails if it exists.
pub fn create_private(path: &Path) -> io::Result<File> {
    private().write(true).create_new(true).open(path)
}

/// Creates a directory with mode 0700. Fails if it exists.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Creates a directory and its missing parents with mode 0700. Existing ones keep their mode.
pub fn ensure_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces a file atomically and durably, with mode 0600: after a crash of the host it has either its old or its new content.
///
/// Only one caller may replace the same file at a time.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, true)
}

/// Like [`replace`], without flushing to disk: a crash of the host may lose the new content.
pub fn replace_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, false)
}

fn put(path: &Path, bytes: &[u8], synced: bool) -> io::Result<()> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidFilename.into());
    };
    // A path of one component.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let mut staged_name = std::ffi::OsString::from(".");
    staged_name.push(name);
    staged_name.push(".new");
    let staged = dir.join(staged_name);
    // A file that a crash left may have any mode.
    ignore_not_found(std::fs::remove_file(&staged))?;
    let write = || {
        let mut file = create_private(&staged)?;
        // The umask may have removed bits.
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(bytes)?;
        if synced {
            file.sync_all()?;
        }
        std::fs::rename(&staged, path)?;
        if synced { sync_dir(dir) } else { Ok(()) }
    };
    let written = write();
    if written.is_err() {
        let _ = std::fs::remove_file(&staged);
    }
    written
}

/// Flushes a directory, so that files created, renamed or removed in it survive a crash of the host.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Turns the error for a file or directory that does not exist into success.
pub fn ignore_not_found(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_says_nothing_about_the_file() {
        use rustix::io::Errno;
        for (errno, shortage) in [
            (Errno::MFILE, true),
            (Errno::NFILE, true),
            (Errno::NOMEM, true),
            (Errno::NOENT, false),
            (Errno::IO, false),
            (Errno::ACCESS, false),
        ] {
            assert_eq!(is_shortage(&errno.into()), shortage, "{errno}");
        }
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_as_a_whole_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        std::fs::write(dir.path().join(".state.json.new"), "left by a crash").unwrap();
        for (text, put) in [("one", replace as fn(&Path, &[u8]) -> io::Result<()>), ("two", replace_unsynced)] {
            put(&path, text.as_bytes()).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            assert_eq!(mode(&path), 0o600);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_replacement_that_fails_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("inside"), "").unwrap();
        assert!(replace(&path, b"x").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(replace(&dir.path().join("missing/file"), b"x").is_err());
    }

    #[test]
    fn directories_are_private_and_may_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        ensure_private_dir(&deep).unwrap();
        ensure_private_dir(&deep).unwrap();
        assert_eq!((mode(&deep), mode(deep.parent().unwrap())), (0o700, 0o700));
        assert!(create_private_dir(&deep).is_err());
    }
}
