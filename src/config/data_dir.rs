//! The data directory: where it is, and who may use it.

use std::{
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::error::ConfigError;
use crate::platform::files;

/// The data directory as given, else `~/.mayfly`.
pub fn data_dir_or_default(given: Option<PathBuf>) -> Result<PathBuf, ConfigError> {
    let dir = match given.filter(|d| !d.as_os_str().is_empty()) {
        Some(dir) => dir,
        None => {
            let home = std::env::var_os("HOME").filter(|h| !h.is_empty()).ok_or(ConfigError::NoHome)?;
            PathBuf::from(home).join(".mayfly")
        }
    };
    std::path::absolute(&dir).map_err(|cause| ConfigError::CannotUse { path: dir.display().to_string(), cause })
}

/// Makes the directory if there is none, and refuses one that others could read or plant files in: it holds the vault's key,
/// the admin token and every guest's disk.
pub(super) fn prepare_data_dir(dir: &Path) -> Result<(), ConfigError> {
    let path = dir.display().to_string();
    let meta = match std::fs::metadata(dir) {
        Ok(meta) => meta,
        Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
            files::ensure_private_dir(dir).map_err(|cause| ConfigError::CannotCreate { path: path.clone(), cause })?;
            std::fs::metadata(dir).map_err(|cause| ConfigError::CannotUse { path: path.clone(), cause })?
        }
        Err(cause) => return Err(ConfigError::CannotUse { path, cause }),
    };
    if !meta.is_dir() {
        return Err(ConfigError::NotADirectory { path });
    }
    let me = rustix::process::geteuid().as_raw();
    if meta.uid() != me {
        return Err(ConfigError::NotOurs { path, owner: meta.uid(), me });
    }
    let mode = meta.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(ConfigError::Open { path, mode });
    }
    use rustix::fs::Access;
    rustix::fs::access(dir, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|cause| ConfigError::NotWritable { path, cause: cause.into() })
}
