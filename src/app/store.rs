//! Opens the data directory: its lock, the key, the database, the admin token.

use std::{
    fs::File,
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

use super::error::StartError;
use crate::{
    domain::Error,
    platform::{
        data_dir::DataDir,
        database::{ReserveFile, Unchecked},
        files,
    },
    service::local_admin::{LocalAdmin, LocalAdminToken},
    store::{self, Store, Vault},
    telemetry::{self, LogSection},
};

/// One service per data directory. The kernel releases the lock when the process ends in any way.
pub(super) fn lock(data: &DataDir) -> Result<File, StartError> {
    let dir = || data.path().display().to_string();
    let file = files::private()
        .write(true)
        .create(true)
        .truncate(false)
        .open(data.lock())
        .map_err(|cause| StartError::DataDir { dir: dir(), cause })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StartError::InUse { dir: dir() }),
        Err(std::fs::TryLockError::Error(cause)) => Err(StartError::DataDir { dir: dir(), cause }),
    }
}

/// Refuses a key that cannot be used, or that is missing beside a database. Makes none.
pub(super) fn check_key(data: &DataDir) -> Result<(), StartError> {
    let (key, database) = (data.secret_key(), data.database());
    if key.exists() {
        return Ok(Vault::open(&key).map(drop)?);
    }
    // A new key beside old records would silently make the scripts of live vms unreadable and the tokens of their
    // guests invalid.
    if std::fs::metadata(&database).is_ok_and(|file| file.len() > 0) {
        return Err(StartError::KeyLost { key: key.display().to_string(), database: database.display().to_string() });
    }
    Ok(())
}

pub(super) async fn open(data: &DataDir, reserve_bytes: u64) -> Result<(Vault, Store), StartError> {
    // Under the lock: another service may have been moved away since the first check.
    check_key(data)?;
    let (key, database) = (data.secret_key(), data.database());
    let vault = Vault::open(&key)?;
    Ok((vault, store::open_with(&database, ReserveFile { path: data.database_reserve(), bytes: reserve_bytes }).await?))
}

/// Checks a database that is too large to be checked at the start.
pub(super) async fn check_later(unchecked: Unchecked) {
    // Work that waits for the start of the service comes first.
    tokio::time::sleep(Duration::from_secs(10)).await;
    unchecked.check().await;
}

fn no_token(error: Error) -> StartError {
    StartError::AdminToken(error.cause.as_ref().map_or_else(|| error.to_string(), ToString::to_string))
}

/// At the first start, creates an admin token that is readable for users with access to the data directory. Created
/// again if the file was removed.
pub(super) async fn admin_token(local: &LocalAdmin, path: &Path, log: &LogSection) -> Result<(), StartError> {
    match local.ensure().await.map_err(no_token)? {
        LocalAdminToken::Kept => {}
        LocalAdminToken::NotValid => {
            tracing::warn!(path = %path.display(), "the token in this file is not valid; `mayfly token rotate-local` writes a new one");
        }
        LocalAdminToken::Written => {
            // So that it is seen with every level of the log.
            let told = telemetry::line(log, &format!("admin token written to {}", path.display()));
            let _ = writeln!(io::stderr(), "{told}");
        }
    }
    Ok(())
}
