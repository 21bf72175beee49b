//! A directory in which an instance is built. One rename publishes it; otherwise it is removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use uuid::Uuid;

use crate::{
    domain::InstanceName,
    platform::files::{self, ignore_not_found},
};

const TRASH: &str = "trash-";

#[derive(Debug)]
pub struct StageDir {
    dir: PathBuf,
    /// Cancels a copy that is no longer needed.
    given_up: Arc<AtomicBool>,
}

impl StageDir {
    /// In the directory `staging`, which is created.
    pub fn new(staging: &Path, name: &InstanceName) -> io::Result<StageDir> {
        files::ensure_private_dir(staging)?;
        let dir = staging.join(format!("{name}-{}", Uuid::new_v4()));
        files::create_private_dir(&dir)?;
        Ok(StageDir { dir, given_up: Arc::default() })
    }

    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Set when the stage is dropped.
    pub fn given_up(&self) -> Arc<AtomicBool> {
        self.given_up.clone()
    }
}

impl Drop for StageDir {
    fn drop(&mut self) {
        self.given_up.store(true, Ordering::Relaxed);
        discard(&self.dir);
    }
}

/// Removes what earlier attempts at this instance left, and all trash. A copy that still writes there ends because its
/// directory is gone.
pub fn clear(staging: &Path, name: &InstanceName) -> io::Result<()> {
    let prefix = format!("{name}-");
    let entries = match fs::read_dir(staging) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        // The name of a later attempt begins with that of the first one.
        let staged = |n: &str| n.strip_prefix(&prefix).is_some_and(|rest| Uuid::try_parse(rest).is_ok());
        if entry.file_name().to_str().is_some_and(|n| staged(n) || n.starts_with(TRASH)) {
            discard(&entry.path());
        }
    }
    Ok(())
}

/// Removes a directory to which a copy may still be writing. It is renamed first, so that the copy cannot add files.
fn discard(dir: &Path) {
    let trash = dir.with_file_name(format!("{TRASH}{}", Uuid::new_v4()));
    match fs::rename(dir, &trash) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => return tracing::warn!(%error, dir = %dir.display(), "cannot remove the files of a failed clone"),
    }
    if let Err(error) = ignore_not_found(fs::remove_dir_all(&trash)) {
        tracing::warn!(%error, dir = %trash.display(), "cannot remove the files of a failed clone");
    }
}
