//! The directory of a probe, for the files of its test guest. It is removed with the value. If the process is killed
//! first, the next probe removes it: the kernel releases the lock on the directory with the process.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use uuid::Uuid;

use crate::platform::files;

/// Names Mayfly, because the parent may be the directory for temporary files, which other programs use, too.
const PREFIX: &str = ".mayfly-probe-";

pub struct ProbeDir {
    dir: PathBuf,
    /// Locked while the probe runs. Another process, such as `mayfly doctor`, may probe at the same time.
    _lock: File,
}

impl ProbeDir {
    /// In the directory `parent`, from which the directories of killed processes are removed: those with our prefix that this
    /// user can remove.
    pub fn make(parent: &Path) -> io::Result<Self> {
        files::ensure_private_dir(parent)?;
        clear(parent)?;
        loop {
            let dir = parent.join(format!("{PREFIX}{}", Uuid::new_v4()));
            files::create_private_dir(&dir)?;
            if let Some(lock) = locked(&dir)? {
                return Ok(Self { dir, _lock: lock });
            }
        }
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }
}

impl Drop for ProbeDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// `None`: another process took the new directory for one of a killed process, and removed it before it was locked.
fn locked(dir: &Path) -> io::Result<Option<File>> {
    let lock = match File::open(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    lock.lock()?;
    Ok(dir.try_exists()?.then_some(lock))
}

fn clear(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let is_probe = |name: &str| name.strip_prefix(PREFIX).is_some_and(|id| Uuid::try_parse(id).is_ok());
        if !entry.file_name().to_str().is_some_and(is_probe) || !entry.file_type()?.is_dir() {
            continue;
        }
        let removed = File::open(entry.path()).and_then(|dir| match dir.try_lock() {
            Ok(()) => fs::remove_dir_all(entry.path()),
            Err(fs::TryLockError::WouldBlock) => Ok(()),
            Err(fs::TryLockError::Error(error)) => Err(error),
        });
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, dir = %entry.path().display(), "cannot remove the files of an interrupted probe");
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_interrupted_probe_left_is_removed_by_the_next_one() {
        let parent = tempfile::tempdir().unwrap();
        let names = || {
            let entries = fs::read_dir(parent.path()).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let others = [format!("{PREFIX}of-others"), "mayfly-1".to_owned(), format!("probe-{}", Uuid::new_v4())];
        for other in &others {
            fs::create_dir(parent.path().join(other)).unwrap();
        }
        // Not a directory.
        let file = format!("{PREFIX}{}", Uuid::new_v4());
        fs::write(parent.path().join(&file), "").unwrap();
        let left = parent.path().join(format!("{PREFIX}{}", Uuid::new_v4()));
        fs::create_dir(&left).unwrap();
        fs::write(left.join("guest.img"), "").unwrap();
        let first = ProbeDir::make(parent.path()).unwrap();
        assert!(!left.exists());
        fs::write(first.path().join("guest.img"), "").unwrap();
        // Both run at the same time.
        let second = ProbeDir::make(parent.path()).unwrap();
        assert!(first.path().join("guest.img").exists() && second.path().exists());
        drop((first, second));
        let mut kept = [others.as_slice(), &[file]].concat();
        kept.sort();
        assert_eq!(names(), kept);
    }

    #[test]
    fn a_directory_that_another_process_removed_is_not_used() {
        let parent = tempfile::tempdir().unwrap();
        assert!(locked(&parent.path().join("gone")).unwrap().is_none());
    }
}
