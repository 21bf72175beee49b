//! Files that hold secrets: read only when nobody else can.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::MetadataExt,
    path::Path,
};

use secrecy::SecretString;

/// A key or a token; more is a mistake in the path.
const LIMIT: u64 = 64 << 10;

/// The text of a file that is its owner's alone. Links are followed, because services are handed their secrets through them;
/// what counts is the file at the end.
pub fn read(path: &Path) -> Result<SecretString, String> {
    let shown = path.display();
    let failed = |e: std::io::Error| format!("{shown} cannot be read: {e}");
    // Before it is opened: opening a pipe waits for somebody to write.
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => return Err(format!("{shown} is not a file")),
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(format!("there is no {shown}")),
        Err(e) => return Err(failed(e)),
    }
    let file = File::open(path).map_err(failed)?;
    // Of the opened file, so that nobody can put another one in between.
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
        drop(SecretString::from(text));
        return Err(failed(e));
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_file_of_ones_own_is_read_and_one_open_to_others_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, "hunter2\n").unwrap();
        for mode in [0o644, 0o640, 0o602, 0o610] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            assert!(error.contains("chmod 600") && error.contains(&format!("{mode:04o}")), "{error}");
            assert!(!error.contains("hunter2"));
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read(&path).unwrap().expose_secret(), "hunter2\n");
        std::os::unix::fs::symlink(&path, dir.path().join("link")).unwrap();
        assert_eq!(read(&dir.path().join("link")).unwrap().expose_secret(), "hunter2\n");
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(read(&path).unwrap_err().contains("belongs to another user (uid 12345"));
        }
    }

    #[test]
    fn what_is_no_key_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read(&dir.path().join("none")).unwrap_err().contains("there is no"));
        assert!(read(dir.path()).unwrap_err().contains("is not a file"));
        let path = dir.path().join("key");
        fs::write(&path, vec![b'x'; LIMIT as usize + 1]).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read(&path).unwrap_err().contains("larger than 64 KiB"));
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(read(&path).unwrap_err().contains("cannot be read"));
    }
}
