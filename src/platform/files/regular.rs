//! Opens files at paths where another user may have put a link, a pipe or a socket.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::{fs::OFlags, io::Errno};

/// Opens a regular file for reading, or says what is wrong with it. A symbolic link is refused and not followed: it may point
/// at a file that only this service can read. Links among the directories of the path are followed; the caller has to know
/// that they are not a stranger's. Nothing is waited for, whatever is there.
pub fn open_regular(path: &Path) -> Result<File, String> {
    // A pipe without a writer would block, and a terminal would become the service's own.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path) {
        Ok(file) => file,
        // FreeBSD's and macOS's, and Linux's error for a link.
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::LOOP | Errno::MLINK)) => {
            return Err("is a symbolic link, name the file that it points at, or put the file itself there".into());
        }
        // A socket.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NXIO) => return Err("must be a regular file".into()),
        Err(error) => return Err(unreadable(&error)),
    };
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err("must be a regular file".into()),
        Err(error) => Err(unreadable(&error)),
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("cannot be read: {}", error.kind())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn only_the_file_itself_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("file"), "x").unwrap();
        open_regular(&path("file")).unwrap();
        symlink("file", path("link")).unwrap();
        symlink("nowhere", path("dangling")).unwrap();
        symlink(dir.path(), path("dir-link")).unwrap();
        for name in ["link", "dangling", "dir-link"] {
            assert!(open_regular(&path(name)).unwrap_err().contains("symbolic link"), "{name}");
        }
        // A directory of the path may be one.
        open_regular(&path("dir-link/file")).unwrap();
        std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for what in [dir.path().to_owned(), "/dev/null".into(), path("socket")] {
            assert!(open_regular(&what).unwrap_err().contains("regular file"), "{what:?}");
        }
        assert!(open_regular(&path("missing")).unwrap_err().contains("cannot be read"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_pipe_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(open_regular(&pipe).unwrap_err().contains("regular file"));
    }
}
