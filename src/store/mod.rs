//! The SQLite database, which holds all state of the service.
//!
//! `platform::database` has the file and its connections: many readers, and one task that writes. A write is answered
//! only after it is on disk.
//!
//! The store knows only the domain: no hypervisor, no clock of its own, no HTTP.

use std::path::Path;

use crate::platform::database::{
    self, Database, DatabaseError, DatabaseFault, FaultKind, OpenError, ReserveFile, Unchecked, WriteError,
};

pub mod changes;
mod clock_scale;
mod clock_steps;
pub mod deliveries;
pub mod guest_heartbeats;
pub mod idempotency;
pub mod jobs;
pub mod ledger;
mod log_times;
pub mod logs;
pub mod placement;
pub mod pools;
pub mod pulls;
mod ready_metrics;
pub mod retention;
mod rows;
pub mod runners;
mod schema;
pub mod template_events;
pub mod tokens;
pub mod vault;
pub mod vm_queries;
pub mod watches;

pub use changes::{Change, Changes};
pub use ledger::{Expect, Ledger};
pub use schema::check_version;
pub use template_events::Entry;
pub use vault::Vault;
pub use vm_queries::Reader;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the database holds what this version cannot read: {0}")]
    Unreadable(String),
    #[error(transparent)]
    Refused(Box<crate::domain::Error>),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::Database(error.into())
    }
}

impl From<DatabaseFault> for StoreError {
    fn from(fault: DatabaseFault) -> Self {
        StoreError::Database(fault.into())
    }
}

impl WriteError for StoreError {
    fn into_sqlite(self) -> Result<sqlx::Error, Self> {
        match self {
            StoreError::Database(error) => error.into_sqlite().map_err(StoreError::Database),
            other => Err(other),
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
            StoreError::Unreadable(_) => Error::internal(error),
            StoreError::Database(error) => match error {
                DatabaseError::Sqlite(_) | DatabaseError::WriterGone => Error::new(
                    Code::StoreUnavailable,
                    "the database could not be used; the cause is in the service's log",
                )
                .cause(error),
                DatabaseError::Fault(fault) => {
                    let code = match fault.kind {
                        FaultKind::Unwritable => Code::StoreUnavailable,
                        FaultKind::Replaced | FaultKind::Damaged => Code::StoreDamaged,
                    };
                    Error::new(code, fault.detail.to_string())
                }
                DatabaseError::Panicked => Error::internal(error),
            },
        }
    }
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

pub struct Store {
    pub ledger: Ledger,
    pub reader: Reader,
    /// Ends once every clone of the ledger is dropped, the last write is on disk and the database is closed, also for
    /// readers.
    pub closed: tokio::task::JoinHandle<()>,
    /// The rest of a check that takes longer than a start may.
    pub unchecked: Option<Unchecked>,
}

/// Opens the database and migrates it. Nothing is kept for it on a full disk.
pub async fn open(path: &Path) -> Result<Store, OpenError> {
    open_with(path, ReserveFile::none(path)).await
}

/// The same, with a file that keeps disk space for the database.
pub async fn open_with(path: &Path, reserve: ReserveFile) -> Result<Store, OpenError> {
    let Database { writer, readers, closed, unchecked } = database::open(path, &schema::MIGRATIONS, reserve).await?;
    // The position of the last event.
    let last = sqlx::query_scalar("SELECT COALESCE(MAX(seq), 0) FROM events").fetch_one(&readers).await;
    match last {
        Ok(last) => Ok(Store {
            ledger: Ledger::new(writer, Changes::new(last)),
            reader: Reader::new(readers),
            closed,
            unchecked,
        }),
        Err(error) => {
            drop(writer);
            // Awaited, so that the files beside the database are gone before the process ends.
            let _ = closed.await;
            Err(database::explain_open(&path.display().to_string(), error))
        }
    }
}
