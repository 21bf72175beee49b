//! Connects to a Unix socket whose path may be longer than an address can hold: 104 bytes on macOS, 108 on Linux.
//!
//! `chdir` would change the directory of all threads. Instead the path is shortened by a symbolic link to the
//! socket's directory, in a directory that only this user can enter; both are removed after the connection.

use std::{
    fs, io,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use tokio::net::UnixStream;
use uuid::Uuid;

use crate::platform::files;

/// The longest path that all systems support, including the final zero.
const LONGEST: usize = 103;

pub(super) async fn connect(path: &Path) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= LONGEST {
        return UnixStream::connect(path).await;
    }
    let detour = Detour::to(path)?;
    UnixStream::connect(&detour.socket).await
}

struct Detour {
    dir: PathBuf,
    link: PathBuf,
    socket: PathBuf,
}

impl Detour {
    fn to(path: &Path) -> io::Result<Detour> {
        let (Some(target), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket"));
        };
        let target = std::path::absolute(target)?;
        let mut last = io::Error::new(io::ErrorKind::InvalidInput, "no directory for temporary files has a short path");
        // The system's directory belongs only to this user on macOS, and may itself have a long path.
        for base in [std::env::temp_dir(), PathBuf::from("/tmp")] {
            let dir = base.join(format!("mf-{}", Uuid::new_v4().simple()));
            let link = dir.join("d");
            let socket = link.join(name);
            if socket.as_os_str().as_bytes().len() > LONGEST {
                continue;
            }
            // Fails if it exists, so its content is certainly ours.
            match files::create_private_dir(&dir) {
                Ok(()) => {
                    let detour = Detour { dir, link, socket };
                    std::os::unix::fs::symlink(&target, &detour.link)?;
                    return Ok(detour);
                }
                Err(e) => last = e,
            }
        }
        Err(last)
    }
}

impl Drop for Detour {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.link);
        let _ = fs::remove_dir(&self.dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_long_path_is_reached_and_nothing_is_left_behind() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v".repeat(150));
        fs::create_dir(&dir).unwrap();
        let detour = Detour::to(&dir.join("control.sock")).unwrap();
        let listener = tokio::net::UnixListener::bind(&detour.socket).unwrap();
        assert!(dir.join("control.sock").exists());
        let made = detour.dir.clone();
        drop(detour);
        assert!(!made.exists());

        let socket = dir.join("control.sock");
        let (stream, accepted) = tokio::join!(connect(&socket), listener.accept());
        stream.unwrap();
        accepted.unwrap();
        let error = connect(&dir.join("absent.sock")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
