//! Reads files that hold secrets, and refuses files that other users can read or replace.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use secrecy::{ExposeSecret as _, SecretString};

/// Far more than a key, password or token needs: a larger file is a mistake in the path.
const LIMIT: u64 = 64 << 10;

/// Reads a file whose mode and owner keep other users out. Symbolic links are followed, because service managers provide secrets
/// through them; mode and owner of the target count.
pub fn read_secret(path: &Path) -> Result<SecretString, String> {
    read_secret_if_present(path)?.ok_or_else(|| format!("there is no {}", path.display()))
}

/// The trimmed secrets of these files, none of which may be empty.
pub fn read_secrets(paths: &[PathBuf]) -> Result<Vec<SecretString>, String> {
    paths
        .iter()
        .map(|path| {
            let text = read_secret(path)?;
            match text.expose_secret().trim() {
                "" => Err(format!("{} holds no secret", path.display())),
                secret => Ok(SecretString::from(secret)),
            }
        })
        .collect()
}

/// As [`read_secret`]; `None` when there is no such file.
pub fn read_secret_if_present(path: &Path) -> Result<Option<SecretString>, String> {
    let shown = path.display();
    let failed = |e: std::io::Error| format!("{shown} cannot be read: {e}");
    // Checked before it is opened: opening a named pipe blocks until it has a writer.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(format!("{shown} is not a file")),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    let file = File::open(path).map_err(failed)?;
    // Checked on the open file, so that it cannot be exchanged between the check and the read.
    let found = file.metadata().map_err(failed)?;
    if found.mode() & 0o077 != 0 {
        let mode = found.mode() & 0o7777;
        return Err(format!("{shown} is open to other users (mode {mode:04o}); close it with: chmod 600 {shown}"));
    }
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own && found.uid() != 0 {
        return Err(format!("{shown} belongs to another user (uid {}, expected {own})", found.uid()));
    }
    if found.len() > LIMIT {
        return Err(format!("{shown} is larger than {} KiB", LIMIT >> 10));
    }
    let mut text = String::new();
    if let Err(e) = file.take(LIMIT).read_to_string(&mut text) {
        // Overwrites what was read.
        drop(SecretString::from(text));
        return Err(failed(e));
    }
    Ok(Some(text.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    fn put(dir: &Path, mode: u32) -> std::path::PathBuf {
        let path = dir.join("secret");
        fs::write(&path, "hunter2\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    #[test]
    fn a_private_file_is_read_directly_and_through_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = put(dir.path(), 0o600);
        assert_eq!(read_secret_if_present(&path).unwrap().unwrap().expose_secret(), "hunter2\n");
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert_eq!(read_secret_if_present(&dir.path().join("link")).unwrap().unwrap().expose_secret(), "hunter2\n");
    }

    #[test]
    fn a_file_open_to_others_is_refused_with_the_remedy() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o644, 0o640, 0o602, 0o610] {
            let path = put(dir.path(), mode);
            let error = read_secret_if_present(&path).unwrap_err();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")), "{error}");
            assert!(!error.contains("hunter2"));
        }
    }

    #[test]
    fn a_missing_file_is_none_and_a_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_secret_if_present(&dir.path().join("none")).unwrap().is_none());
        assert!(read_secret_if_present(dir.path()).unwrap_err().contains("is not a file"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_named_pipe_does_not_block() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(read_secret_if_present(&pipe).unwrap_err().contains("is not a file"));
    }

    #[test]
    fn a_file_that_is_too_large_or_not_text_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = put(dir.path(), 0o600);
        fs::write(&path, vec![b'x'; LIMIT as usize + 1]).unwrap();
        assert!(read_secret_if_present(&path).unwrap_err().contains("larger than 64 KiB"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read_secret_if_present(&path).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_file_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = put(dir.path(), 0o600);
        assert_eq!(read_secret(&path).unwrap().expose_secret(), "hunter2\n");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(read_secret(&path).unwrap_err().contains("belongs to another user (uid 12345"));
        }
    }

    #[test]
    fn a_required_secret_that_is_missing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_secret(&dir.path().join("none")).unwrap_err().contains("there is no"));
    }
}
