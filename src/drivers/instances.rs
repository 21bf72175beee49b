//! The directories of instances, for drivers that give each instance one: named after it, in a directory of the driver.

use std::{
    io,
    path::{Path, PathBuf},
};

use super::{DriverError, ErrorKind, Observation, Result, Seed, failure};
use crate::{
    domain::{Code, InstanceName},
    platform::{
        files::{self, ignore_not_found},
        tasks::blocking_io,
    },
};

/// How often the removal of a directory is begun again because a file was created in it meanwhile.
const REMOVALS: u32 = 10;

/// The instances that have a directory.
pub async fn names(dir: &Path) -> Result<Vec<InstanceName>> {
    let unseen = |error| failure::unseen(error, "the instances directory");
    let mut names = Vec::new();
    match tokio::fs::read_dir(dir).await {
        Ok(mut dir) => {
            while let Some(entry) = dir.next_entry().await.map_err(unseen)? {
                names.extend(entry.file_name().to_str().and_then(InstanceName::read));
            }
        }
        Err(error) => ignore_not_found(Err(error)).map_err(unseen)?,
    }
    Ok(names)
}

/// Whether an instance's file or directory is there.
pub fn exists(path: &Path) -> Result<bool> {
    failure::exists(path).map_err(|error| failure::unseen(error, "the instance"))
}

/// An empty directory for an instance. An interrupted attempt or an earlier run may have left a clone: a new one is cheap, so
/// nothing is reused.
pub async fn renew(dir: &Path) -> Result<()> {
    let fresh = async {
        ignore_not_found(tokio::fs::remove_dir_all(dir).await)?;
        files::ensure_private_dir(dir)
    };
    fresh.await.map_err(|error| failure::io(error, Code::CloneFailed, "the instance's directory cannot be made"))
}

/// Writes the seed's volume, if the guest has one.
pub async fn write_seed(path: PathBuf, seed: Option<&Seed>) -> Result<()> {
    let Some(seed) = seed else { return Ok(()) };
    let volume = seed.volume.clone();
    blocking_io(move || files::replace_unsynced(&path, &volume))
        .await
        .map_err(|error| failure::io(error, Code::BootFailed, "the seed volume cannot be written"))
}

/// What a driver sees of an instance after its removal.
pub fn confirm_absence(name: &InstanceName, seen: Observation) -> Result<()> {
    if seen == Observation::Absent {
        return Ok(());
    }
    let summary = format!("{name} was removed and is still there: {seen:?}");
    Err(DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary))
}

/// Removes an instance's directory. A gateway that an interrupted start launched may create its files meanwhile; it ends when the
/// directory is gone.
pub async fn remove(dir: &Path) -> Result<()> {
    let mut again = REMOVALS;
    loop {
        match ignore_not_found(tokio::fs::remove_dir_all(dir).await) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && again > 0 => again -= 1,
            Err(error) => {
                return Err(failure::io(error, Code::HostUnavailable, "the instance's directory cannot be removed"));
            }
        }
    }
}
