//! Protects a template while it is cloned.

use std::{
    fs::{File, TryLockError},
    io,
    path::Path,
};

use super::{DriverError, ErrorKind, Result, failure};
use crate::domain::Code;

/// Protects a template's disk from deletion while the returned file is open. A deletion first takes the exclusive
/// lock.
pub async fn lock_shared(disk: &Path) -> Result<File> {
    let disk = disk.to_owned();
    let locked = tokio::task::spawn_blocking(move || {
        let file = match File::open(&disk) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let summary = format!("the template's disk {} is gone", disk.display());
                return Err(DriverError::new(ErrorKind::Permanent, Code::CloneFailed, summary).source(error));
            }
            Err(error) => return Err(failure::io(error, Code::CloneFailed, "the template's disk cannot be opened")),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                let summary = format!("the template's disk {} is being deleted", disk.display());
                Err(DriverError::new(ErrorKind::Retry, Code::CloneFailed, summary))
            }
            Err(TryLockError::Error(error)) => {
                Err(failure::io(error, Code::CloneFailed, "the template's disk cannot be locked"))
            }
        }
    });
    locked.await.unwrap_or_else(|error| {
        Err(DriverError::new(ErrorKind::Retry, Code::CloneFailed, "locking the template's disk was interrupted")
            .source(error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_template_that_is_being_deleted_is_not_cloned() {
        let dir = tempfile::tempdir().unwrap();
        let disk = dir.path().join("disk");
        std::fs::write(&disk, b"x").unwrap();
        let first = lock_shared(&disk).await.unwrap();
        let second = lock_shared(&disk).await.unwrap();
        let deleter = File::open(&disk).unwrap();
        assert!(deleter.try_lock().is_err());
        drop((first, second));
        deleter.try_lock().unwrap();
        assert_eq!(lock_shared(&disk).await.unwrap_err().kind, ErrorKind::Retry);
        assert_eq!(lock_shared(&dir.path().join("none")).await.unwrap_err().kind, ErrorKind::Permanent);
    }
}
