//! Checks the pages of the database: before it is used if that is fast enough, otherwise in the background.

use std::{path::Path, time::Duration};

use sqlx::{ConnectOptions, Connection, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{BUSY_TIMEOUT, OpenError, explain_open, health::beside};
use crate::platform::clock;

/// How much is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    /// Every page, and whether its rows can be read.
    Pages,
    /// Also whether every index matches its table. After an unclean shutdown.
    PagesAndIndexes,
}

/// A database up to this size is read completely in a tenth of a second, in bytes.
const QUICK: u64 = 16 << 20;
/// How long a start waits for the check after an unclean shutdown. A longer check continues beside the service.
const AT_START: Duration = Duration::from_secs(10);

/// Result of the check at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntegrityCheck {
    Sound,
    /// Reading everything would have delayed the start for too long.
    Later(Depth),
}

pub(super) fn is_quick(size: u64) -> bool {
    size <= QUICK
}

/// Checks a database that is not open yet. A damaged one is not changed, so that it can be repaired.
pub(super) async fn check_at_start(path: &Path, shown: &str) -> Result<IntegrityCheck, OpenError> {
    let Ok(meta) = std::fs::metadata(path) else { return Ok(IntegrityCheck::Sound) };
    if meta.len() == 0 {
        return Ok(IntegrityCheck::Sound);
    }
    // A clean shutdown leaves no write-ahead log. Without one, the check creates no file beside the database.
    let at_rest = !beside(path, "-wal").exists();
    let options = read_only(path).immutable(at_rest);
    let mut connection = options.connect().await.map_err(|error| explain_open(shown, error))?;
    let orderly = at_rest && closed_cleanly(&mut connection).await;
    let checked = match (orderly, is_quick(meta.len())) {
        (true, true) => check(&mut connection, Depth::Pages, None).await,
        (true, false) => Ok(IntegrityCheck::Later(Depth::Pages)),
        (false, _) => {
            tracing::debug!(path = shown, "the database was not closed cleanly; checking all of it");
            check(&mut connection, Depth::PagesAndIndexes, Some(AT_START)).await
        }
    };
    let _ = connection.close().await;
    checked.map_err(|error| explain(shown, error))
}

/// Checks an open database on a separate connection.
pub(super) async fn check_beside(path: &Path, depth: Depth) -> Result<(), CheckError> {
    let mut connection = read_only(path).connect().await?;
    let checked = check(&mut connection, depth, None).await;
    let _ = connection.close().await;
    checked.map(drop)
}

#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("{0}")]
    Found(String),
    #[error(transparent)]
    Sqlite(#[from] sqlx::Error),
}

fn explain(shown: &str, error: CheckError) -> OpenError {
    match error {
        CheckError::Found(cause) => OpenError::Corrupt { path: shown.to_owned(), cause },
        CheckError::Sqlite(error) => explain_open(shown, error),
    }
}

fn read_only(path: &Path) -> SqliteConnectOptions {
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT);
    // Reading everything is slow. A lock that is not released is reported as such, not as a slow statement.
    options.disable_statement_logging()
}

/// Databases of versions that did not record this count as not cleanly closed.
async fn closed_cleanly(connection: &mut SqliteConnection) -> bool {
    let orderly = sqlx::query_scalar::<_, i64>("SELECT closed_cleanly FROM store_state WHERE id = 1");
    orderly.fetch_one(connection).await.is_ok_and(|orderly| orderly == 1)
}

async fn check(
    connection: &mut SqliteConnection,
    depth: Depth,
    limit: Option<Duration>,
) -> Result<IntegrityCheck, CheckError> {
    if let Some(limit) = limit {
        let end = clock::monotonic() + limit;
        connection.lock_handle().await?.set_progress_handler(100_000, move || clock::monotonic() < end);
    }
    let sql = match depth {
        Depth::Pages => "PRAGMA quick_check(1)",
        Depth::PagesAndIndexes => "PRAGMA integrity_check(1)",
    };
    match sqlx::query_scalar::<_, String>(sql).fetch_one(connection).await {
        Ok(found) if found == "ok" => Ok(IntegrityCheck::Sound),
        // SQLite describes damage in several lines.
        Ok(found) => Err(CheckError::Found(found.split_whitespace().collect::<Vec<_>>().join(" "))),
        Err(error) if interrupted(&error) => Ok(IntegrityCheck::Later(depth)),
        Err(error) => Err(error.into()),
    }
}

fn interrupted(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == "9")
}
