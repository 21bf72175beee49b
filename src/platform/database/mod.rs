//! A SQLite database: its file, its connections and its disk space. It knows no table but `store_state`.
//!
//! Many readers, one writer. Readers are read-only connections that see the last commit. The writer is a separate
//! task, so that a cancelled request never interrupts a write, and nothing waits for a lock. Writes that arrive
//! during a commit share the next one. A write is answered only after it is on disk (WAL, synchronous=FULL).
//!
//! ```text
//! health     what is wrong with the database; whether its files are still the ones that are open
//! integrity  checks its pages, at the start and after a suspicion
//! readers    the connections for reads
//! reserve    a file that keeps disk space for the database
//! schema     whether this version can read a database
//! writer     the task that writes
//! ```

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    migrate::{MigrateError, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

mod health;
mod integrity;
mod readers;
mod reserve;
mod schema;
mod writer;

pub use health::{DatabaseFault, DatabaseHealth, FaultKind};
pub use readers::ReadPool;
use reserve::DatabaseReserve;
pub use reserve::{DatabaseSection, ReserveFile};
pub use schema::check_version;
pub use writer::Writer;

#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("database: {0}")]
    Sqlite(sqlx::Error),
    #[error("database: {0}")]
    Fault(#[from] DatabaseFault),
    #[error("the database writer has ended")]
    WriterGone,
    #[error("a write to the database panicked")]
    Panicked,
}

impl From<sqlx::Error> for DatabaseError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::AnyDriverError(error) => match error.downcast::<DatabaseFault>() {
                Ok(fault) => DatabaseError::Fault(*fault),
                Err(error) => DatabaseError::Sqlite(sqlx::Error::AnyDriverError(error)),
            },
            error => DatabaseError::Sqlite(error),
        }
    }
}

/// What a request to the writer fails with.
pub trait WriteError: From<DatabaseError> + Send + 'static {
    /// SQLite's error, if it is one. The writer decides whether only this request failed.
    fn into_sqlite(self) -> Result<sqlx::Error, Self>;
}

impl WriteError for DatabaseError {
    fn into_sqlite(self) -> Result<sqlx::Error, Self> {
        match self {
            DatabaseError::Sqlite(error) => Ok(error),
            other => Err(other),
        }
    }
}

/// How long to wait for another program's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections for reads.
const READ_CONNECTIONS: u32 = 4;

/// Why the database could not be opened: one sentence for the administrator.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is not a usable database ({cause}); move it away to start with an empty one, or restore a backup")]
    Corrupt { path: String, cause: String },
    #[error("{path} is locked by another program; stop that program first")]
    Locked { path: String },
    #[error(
        "{path} was made by a newer Mayfly ({cause}); start that version, or restore the backup from before the upgrade"
    )]
    Newer { path: String, cause: String },
    #[error("cannot open {path}: {cause}")]
    Other { path: String, cause: String },
}

impl OpenError {
    /// Whether opening it may succeed later without a change by the administrator.
    pub fn passes(&self) -> bool {
        match self {
            OpenError::Locked { .. } | OpenError::Other { .. } => true,
            OpenError::Corrupt { .. } | OpenError::Newer { .. } => false,
        }
    }
}

pub struct Database {
    pub writer: Writer,
    pub readers: ReadPool,
    /// Ends once every clone of the writer is dropped, the last write is on disk and the database is closed, also for
    /// readers.
    pub closed: tokio::task::JoinHandle<()>,
    /// The rest of a check that takes longer than a start may.
    pub unchecked: Option<Unchecked>,
}

/// A database that is in use before all of it was checked.
pub struct Unchecked {
    path: PathBuf,
    depth: integrity::Depth,
    health: DatabaseHealth,
}

impl Unchecked {
    /// Checks all of it. Damage ends writing, as if a request had found it.
    pub async fn check(self) {
        writer::check_later(self.path, self.depth, self.health).await;
    }
}

/// Opens the database at this path, or creates it, and migrates it.
pub async fn open(path: &Path, migrations: &Migrator, reserve: ReserveFile) -> Result<Database, OpenError> {
    let shown = path.display().to_string();
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // In pages. The writer checkpoints long before this size, after it has answered.
        .pragma("wal_autocheckpoint", "20000")
        .busy_timeout(BUSY_TIMEOUT)
        // A lock that is not released is reported as such, and not also as a slow statement.
        .log_slow_statements("warn".parse().expect("it is a level"), BUSY_TIMEOUT * 2);
    let checked = integrity::check_at_start(path, &shown).await?;
    let mut connection = options.clone().connect().await.map_err(|error| explain_open(&shown, error))?;
    if let Err(error) = prepare(&mut connection, migrations, &shown).await {
        // Awaited, so that the files beside the database are gone before the process ends.
        let _ = connection.close().await;
        return Err(error);
    }
    let pool = reader_pool(path).await.map_err(|error| explain_open(&shown, error))?;
    let health = DatabaseHealth::new(path);
    let reserve = DatabaseReserve::open(reserve, health.clone()).await;
    let (writer, closed) = writer::start(path, options, connection, pool.clone(), health.clone(), reserve)
        .await
        .map_err(|fault| OpenError::Other { path: shown, cause: fault.to_string() })?;
    let unchecked = match checked {
        integrity::IntegrityCheck::Sound => None,
        integrity::IntegrityCheck::Later(depth) => {
            Some(Unchecked { path: path.to_owned(), depth, health: health.clone() })
        }
    };
    Ok(Database { writer, readers: ReadPool::new(pool, health), closed, unchecked })
}

/// Checks whether the database can be used, changes nothing if not, and migrates it.
async fn prepare(connection: &mut SqliteConnection, migrations: &Migrator, shown: &str) -> Result<(), OpenError> {
    let explain = |error: sqlx::Error| explain_open(shown, error);
    // Readers do not need another program's lock, but a service that can read and not write is worse than none.
    connection.begin_with("BEGIN IMMEDIATE").await.map_err(&explain)?.rollback().await.map_err(&explain)?;
    migrations.run(&mut *connection).await.map_err(|error| match error {
        MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_) => {
            OpenError::Newer { path: shown.to_owned(), cause: error.to_string() }
        }
        MigrateError::Execute(error) => explain(error),
        other => OpenError::Other { path: shown.to_owned(), cause: other.to_string() },
    })?;
    sqlx::query("UPDATE store_state SET closed_cleanly = 0 WHERE id = 1")
        .execute(&mut *connection)
        .await
        .map_err(&explain)?;
    // Otherwise a copy of only the main file would count as cleanly closed.
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(connection).await.map_err(explain)?;
    Ok(())
}

async fn reader_pool(path: &Path) -> sqlx::Result<SqlitePool> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .pragma("query_only", "on")
        .busy_timeout(BUSY_TIMEOUT);
    SqlitePoolOptions::new()
        // All connections are opened at the start and kept: one that is opened later would read whatever file is at
        // the path by then.
        .max_connections(READ_CONNECTIONS)
        .min_connections(READ_CONNECTIONS)
        .idle_timeout(None)
        .max_lifetime(None)
        // There is no server that could disconnect.
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
}

/// An error while the database is opened.
pub fn explain_open(path: &str, error: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    // The pool of readers explains damage in its own words.
    if let sqlx::Error::AnyDriverError(fault) = &error
        && let Some(DatabaseFault { kind: FaultKind::Damaged, detail }) = fault.downcast_ref()
    {
        return OpenError::Corrupt { path, cause: detail.to_string() };
    }
    let cause = error.to_string();
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<i32>().ok());
    // SQLite's primary result codes are the low byte: 5 BUSY, 6 LOCKED, 11 CORRUPT, 26 NOTADB.
    match code.map(|c| c & 0xff) {
        Some(5 | 6) => OpenError::Locked { path },
        Some(11 | 26) => OpenError::Corrupt { path, cause },
        _ => OpenError::Other { path, cause },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_that_the_readers_find_at_the_start_is_damage() {
        let explained = |kind| {
            let fault = DatabaseFault { kind, detail: "the file mayfly.db is damaged".into() };
            explain_open("mayfly.db", sqlx::Error::AnyDriverError(Box::new(fault)))
        };
        assert!(matches!(explained(FaultKind::Damaged), OpenError::Corrupt { .. }));
        assert!(matches!(explained(FaultKind::Unwritable), OpenError::Other { .. }));
    }
}
