//! The directories of instances, for drivers that give each instance one: named after it, in a directory of the driver.

use std::{io, path::Path};

use super::{Result, failure};
use crate::{domain::InstanceName, platform::files::ignore_not_found};

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

/// Removes an instance's directory. A gateway that an interrupted start launched may create its files meanwhile; it ends when the
/// directory is gone.
pub async fn remove(dir: &Path) -> io::Result<()> {
    let mut again = REMOVALS;
    loop {
        match ignore_not_found(tokio::fs::remove_dir_all(dir).await) {
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty && again > 0 => again -= 1,
            other => return other,
        }
    }
}
