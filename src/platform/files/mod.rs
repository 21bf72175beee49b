//! Files and directories that belong to this user alone, and files that are replaced as a whole.

use std::{
    fs::{DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

mod secret;

pub use secret::{read_secret, read_secret_if_present};

/// Options for a file that, if it is made, only its owner can read and write.
pub fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

/// Makes a file that is not there yet and that only its owner can read and write.
pub fn create_private(path: &Path) -> io::Result<File> {
    private().write(true).create_new(true).open(path)
}

/// Makes a directory that is not there yet and that only its owner can enter.
pub fn create_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)
}

/// Makes a directory, and those above it, where they are missing. Those that are made only their owner can enter.
pub fn ensure_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Replaces a file that only its owner can read. It is there whole, or as it was before, and after a crash of the host as well.
///
/// Only one caller may replace the same file at a time.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, true)
}

/// As [`replace`], for what may be lost when the host crashes.
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
    // What a crash left may have any mode; a new file has ours.
    absent_is_fine(std::fs::remove_file(&staged))?;
    let write = || {
        let mut file = create_private(&staged)?;
        // Whatever the umask is.
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

/// Makes what was created, renamed or removed in a directory survive a crash of the host.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A directory or a file that may be gone already.
pub fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
