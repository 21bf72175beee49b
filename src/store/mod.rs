//! SQLite: the one file that remembers.
//!
//! Many readers, one writer. Readers are read-only connections that see the last commit; the writer is a task of its own, so
//! that a request which is dropped half-way never interrupts a write, and nobody ever waits for a lock. Writes that arrive
//! while another is being made durable share the next commit. A write is answered only once it is on disk
//! (WAL, synchronous=FULL).
//!
//! The store knows the domain and nothing else: no hypervisor, no clock of its own, no HTTP.

use std::{path::Path, time::Duration};

use sqlx::{
    ConnectOptions, Connection, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

pub mod changes;
pub mod deliveries;
pub mod github_runners;
pub mod jobs;
pub mod ledger;
pub mod logs;
pub mod placement;
pub mod pools;
pub mod pulls;
pub mod retention;
pub mod template_events;
pub mod tokens;
pub mod vault;
pub mod vms;
pub mod watches;
mod writer;

pub use changes::{Change, Changes};
pub use ledger::{Expect, Ledger};
pub use template_events::Entry;
pub use vault::Vault;
pub use vms::Reader;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database: {0}")]
    Sqlite(#[from] sqlx::Error),
    #[error("the database holds what this version cannot read: {0}")]
    Unreadable(String),
    #[error("the database writer has ended")]
    WriterGone,
    #[error(transparent)]
    Refused(Box<crate::domain::Error>),
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
            StoreError::Unreadable(_) => Error::internal(error),
        }
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// How long another program's lock is waited for.
const BUSY: Duration = Duration::from_secs(2);

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// Why the database could not be opened: one sentence for whoever starts the service.
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

pub struct Store {
    pub ledger: Ledger,
    pub reader: Reader,
    /// Ends once every clone of the ledger is gone, the last write is on disk and the database is closed, for readers too.
    pub closed: tokio::task::JoinHandle<()>,
}

/// Opens the database, bringing it up to date first.
pub async fn open(path: &Path) -> Result<Store, OpenError> {
    let shown = path.display().to_string();
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        // In pages. Whoever crosses it pays for bringing the log into the database: not every hundredth request, as by default.
        .pragma("wal_autocheckpoint", "4000")
        .busy_timeout(BUSY)
        // A lock that is not given is told as what it is and not as a slow statement too.
        .log_slow_statements("warn".parse().expect("it is a level"), BUSY * 2);
    // Reading every page of years of records takes longer than a start may: see `check_later`.
    let checked = !check_is_quick(path) || check_at_rest(path, &shown).await?;
    let mut connection = options.connect().await.map_err(|error| explain_open(&shown, error))?;
    let last_seq = match prepare(&mut connection, &shown, checked).await {
        Ok(last_seq) => last_seq,
        Err(error) => {
            // Waited for, so that the files beside the database are gone before the process is.
            let _ = connection.close().await;
            return Err(error);
        }
    };
    let pool = reader_pool(path).await.map_err(|error| explain_open(&shown, error))?;
    let changes = Changes::new(last_seq);
    let (writer, closed) = writer::start(connection, pool.clone());
    Ok(Store { ledger: Ledger::new(writer, changes), reader: Reader::new(pool), closed })
}

/// A database up to this size is read whole in a tenth of a second, in bytes.
const CHECKED_AT_START: u64 = 16 << 20;

fn check_is_quick(path: &Path) -> bool {
    std::fs::metadata(path).map_or(true, |meta| meta.len() <= CHECKED_AT_START)
}

/// Reads every page of a database that was too large for that at its opening. What is no database at all, or was cut short,
/// was found then; this finds a damaged page in the middle. On a connection of its own: nobody waits for it.
pub async fn check_later(path: &Path) -> Result<(), OpenError> {
    if check_is_quick(path) {
        return Ok(());
    }
    let shown = path.display().to_string();
    let options = SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(Duration::from_secs(2));
    let mut connection = options.connect().await.map_err(|error| explain_open(&shown, error))?;
    let checked = check(&mut connection, &shown).await;
    let _ = connection.close().await;
    checked
}

/// A database that nobody has open is looked at without making a file beside it: a broken one is left exactly as it is for
/// whoever mends it. Whether that was possible.
async fn check_at_rest(path: &Path, shown: &str) -> Result<bool, OpenError> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    if Path::new(&log).exists() || !std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0) {
        return Ok(false);
    }
    let explain = |error: sqlx::Error| explain_open(shown, error);
    let options = SqliteConnectOptions::new().filename(path).read_only(true).immutable(true);
    let mut connection = options.connect().await.map_err(explain)?;
    check(&mut connection, shown).await?;
    connection.close().await.map_err(explain)?;
    Ok(true)
}

/// A page that cannot be read is better found now than in the middle of somebody's job.
async fn check(connection: &mut SqliteConnection, shown: &str) -> Result<(), OpenError> {
    let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
        .fetch_one(connection)
        .await
        .map_err(|error| explain_open(shown, error))?;
    if found != "ok" {
        return Err(OpenError::Corrupt { path: shown.to_owned(), cause: one_line(&found) });
    }
    Ok(())
}

/// Looks whether the database can be used, changes nothing if not, and brings it up to date. Returns the last event's position.
async fn prepare(connection: &mut SqliteConnection, shown: &str, checked: bool) -> Result<i64, OpenError> {
    let explain = |error: sqlx::Error| explain_open(shown, error);
    if !checked {
        check(connection, shown).await?;
    }
    // Readers get past another program's lock; a service that reads and cannot write is worse than none.
    connection.begin_with("BEGIN IMMEDIATE").await.map_err(&explain)?.rollback().await.map_err(&explain)?;
    MIGRATIONS.run(&mut *connection).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(_) | sqlx::migrate::MigrateError::VersionMismatch(_) => {
            OpenError::Newer { path: shown.to_owned(), cause: error.to_string() }
        }
        sqlx::migrate::MigrateError::Execute(error) => explain(error),
        other => OpenError::Other { path: shown.to_owned(), cause: other.to_string() },
    })?;
    sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM events").fetch_one(connection).await.map_err(explain)
}

async fn reader_pool(path: &Path) -> sqlx::Result<SqlitePool> {
    let options =
        SqliteConnectOptions::new().filename(path).read_only(true).pragma("query_only", "on").busy_timeout(BUSY);
    SqlitePoolOptions::new()
        .max_connections(4)
        .min_connections(1)
        // There is no server at the other end that could have gone away.
        .test_before_acquire(false)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(options)
        .await
}

/// What SQLite says of a broken file goes over several lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
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
