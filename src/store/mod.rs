//! The SQLite database, which holds all state of the service.
//!
//! Many readers, one writer. Readers are read-only connections that see the last commit. The writer is a separate
//! task, so that a cancelled request never interrupts a write, and nothing waits for a lock. Writes that arrive
//! during a commit share the next one. A write is answered only after it is on disk (WAL, synchronous=FULL).
//!
//! The store knows only the domain: no hypervisor, no clock of its own, no HTTP.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub mod changes;
mod clock_scale;
mod clock_steps;
pub mod deliveries;
pub mod guest_heartbeats;
mod health;
pub mod idempotency;
mod integrity;
pub mod jobs;
pub mod ledger;
mod log_times;
pub mod logs;
pub mod placement;
pub mod pools;
pub mod pulls;
mod readers;
mod ready_metrics;
mod reserve;
pub mod retention;
mod rows;
pub mod runners;
mod schema;
pub mod template_events;
pub mod tokens;
pub mod vault;
pub mod vm_queries;
pub mod watches;
mod writer;

pub use changes::{Change, Changes};
pub use health::{FaultKind, StoreFault, StoreHealth};
pub use ledger::{Expect, Ledger};
use readers::Readers;
use reserve::DatabaseReserve;
pub use reserve::{DatabaseSection, ReserveFile};
pub use schema::check_version;
pub use template_events::Entry;
pub use vault::Vault;
pub use vm_queries::Reader;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database: {0}")]
    Sqlite(sqlx::Error),
    #[error("the database holds what this version cannot read: {0}")]
    Unreadable(String),
    #[error("database: {0}")]
    Fault(#[from] StoreFault),
    #[error("the database writer has ended")]
    WriterGone,
    #[error("a write to the database panicked")]
    Panicked,
    #[error(transparent)]
    Refused(Box<crate::domain::Error>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::AnyDriverError(error) => match error.downcast::<StoreFault>() {
                Ok(fault) => StoreError::Fault(*fault),
                Err(error) => StoreError::Sqlite(sqlx::Error::AnyDriverError(error)),
            },
            error => StoreError::Sqlite(error),
        }
    }
}

impl From<crate::domain::Error> for StoreError {
    fn from(error: crate::domain::Error) -> Self {
        StoreError::Refused(Box::new(error))
    }
}

impl From<StoreError> for crate::domain::Error {
    fn from(error: StoreError) -> Self {
        use crate::domain::{Code, Error};
        match error {
            StoreError::Refused(error) => *error,
            StoreError::Sqlite(_) | StoreError::WriterGone => {
                Error::new(Code::StoreUnavailable, "the database could not be used; the cause is in the service's log")
                    .cause(error)
            }
            StoreError::Fault(fault) => {
                let code = match fault.kind {
                    FaultKind::Unwritable => Code::StoreUnavailable,
                    FaultKind::Replaced | FaultKind::Damaged => Code::StoreDamaged,
                };
                Error::new(code, fault.detail.to_string())
            }
            StoreError::Unreadable(_) | StoreError::Panicked => Error::internal(error),
        }
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// How long to wait for another program's lock.
const BUSY: Duration = Duration::from_secs(2);
/// Connections for reads.
const READERS: u32 = 4;

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

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

pub struct Store {
    pub ledger: Ledger,
    pub reader: Reader,
    /// Ends once every clone of the ledger is dropped, the last write is on disk and the database is closed, also for
    /// readers.
    pub closed: tokio::task::JoinHandle<()>,
    /// The rest of a check that takes longer than a start may.
    pub unchecked: Option<Unchecked>,
}

/// A database that is in use before all of it was checked.
pub struct Unchecked {
    path: PathBuf,
    depth: integrity::Depth,
    health: StoreHealth,
}

impl Unchecked {
    /// Checks all of it. Damage ends writing, as if a request had found it.
    pub async fn check(self) {
        writer::check_later(self.path, self.depth, self.health).await;
    }
}

/// Opens the database and migrates it. Nothing is kept for it on a full disk.
pub async fn open(path: &Path) -> Result<Store, OpenError> {
    open_with(path, ReserveFile { path: health::beside(path, "-reserve"), bytes: 0 }).await
}

/// The same, with a file that keeps disk space for the database.
pub async fn open_with(path: &Path, reserve: ReserveFile) -> Result<Store, OpenError> {
    let shown = path.display().to_string();
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // In pages. The writer checkpoints long before this size, after it has answered.
        .pragma("wal_autocheckpoint", "20000")
        .busy_timeout(BUSY)
        // A lock that is not released is reported as such, and not also as a slow statement.
        .log_slow_statements("warn".parse().expect("it is a level"), BUSY * 2);
    let checked = integrity::check_at_start(path, &shown).await?;
    let mut connection = options.clone().connect().await.map_err(|error| explain_open(&shown, error))?;
    let last_seq = match prepare(&mut connection, &shown).await {
        Ok(last_seq) => last_seq,
        Err(error) => {
            // Awaited, so that the files beside the database are gone before the process ends.
            let _ = connection.close().await;
            return Err(error);
        }
    };
    let pool = reader_pool(path).await.map_err(|error| explain_open(&shown, error))?;
    let health = StoreHealth::new(path);
    let changes = Changes::new(last_seq);
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
    Ok(Store {
        ledger: Ledger::new(writer, changes),
        reader: Reader::new(Readers::new(pool, health)),
        closed,
        unchecked,
    })
}

/// Checks whether the database can be used, changes nothing if not, and migrates it. Returns the position of the last
/// event.
async fn prepare(connection: &mut SqliteConnection, shown: &str) -> Result<i64, OpenError> {
    let explain = |error: sqlx::Error| explain_open(shown, error);
    // Readers do not need another program's lock, but a service that can read and not write is worse than none.
    connection.begin_with("BEGIN IMMEDIATE").await.map_err(&explain)?.rollback().await.map_err(&explain)?;
    MIGRATIONS.run(&mut *connection).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(_) | sqlx::migrate::MigrateError::VersionMismatch(_) => {
            OpenError::Newer { path: shown.to_owned(), cause: error.to_string() }
        }
        sqlx::migrate::MigrateError::Execute(error) => explain(error),
        other => OpenError::Other { path: shown.to_owned(), cause: other.to_string() },
    })?;
    sqlx::query("UPDATE store_state SET closed_cleanly = 0 WHERE id = 1")
        .execute(&mut *connection)
        .await
        .map_err(&explain)?;
    // Otherwise a copy of only the main file would count as cleanly closed.
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(&mut *connection).await.map_err(&explain)?;
    sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM events").fetch_one(connection).await.map_err(explain)
}

async fn reader_pool(path: &Path) -> sqlx::Result<SqlitePool> {
    let options =
        SqliteConnectOptions::new().filename(path).read_only(true).pragma("query_only", "on").busy_timeout(BUSY);
    SqlitePoolOptions::new()
        // All connections are opened at the start and kept: one that is opened later would read whatever file is at
        // the path by then.
        .max_connections(READERS)
        .min_connections(READERS)
        .idle_timeout(None)
        .max_lifetime(None)
        // There is no server that could disconnect.
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
}

fn explain_open(path: &str, error: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    let cause = error.to_string();
    let code = error.as_database_error().and_then(|e| e.code()).and_then(|c| c.parse::<i32>().ok());
    // SQLite's primary result codes are the low byte: 5 BUSY, 6 LOCKED, 11 CORRUPT, 26 NOTADB.
    match code.map(|c| c & 0xff) {
        Some(5 | 6) => OpenError::Locked { path },
        Some(11 | 26) => OpenError::Corrupt { path, cause },
        _ => OpenError::Other { path, cause },
    }
}
