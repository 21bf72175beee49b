//! The health of the database: the result of the last write, and whether its files are still the ones that are open.
//!
//! SQLite continues to work on a file that was removed or replaced, and answers from its cache after the pages on
//! disk were overwritten. Everything that is written then is lost at the next start, so the files are checked around
//! every commit.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use crate::platform::{clock, files};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// Writes fail for a reason that may be temporary. They are retried until they succeed.
    Unwritable,
    /// The files at the database's path are not the ones that are open.
    Replaced,
    /// The file's content is not what SQLite wrote. Lasts until the next start, which checks the file.
    Damaged,
}

/// Why the database accepts no writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct DatabaseFault {
    pub kind: FaultKind,
    /// One sentence for the caller: the file, what happened to it, and the remedy.
    pub detail: Arc<str>,
}

/// What an SQLite error says about the connection and the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// Only the statement failed: a constraint, or an invalid value.
    Statement,
    Full,
    Busy,
    ReadOnly,
    /// The system could not read or write. The file has to be checked.
    Io,
    Corrupt,
    /// The connection may be in an unknown state.
    Unknown,
}

pub(super) fn classify(error: &sqlx::Error) -> ErrorClass {
    use sqlx::Error as E;
    let code = match error {
        E::Database(error) => error.code().and_then(|code| code.parse::<i32>().ok()),
        E::RowNotFound | E::ColumnDecode { .. } | E::Decode(_) | E::Encode(_) | E::ColumnNotFound(_) => {
            return ErrorClass::Statement;
        }
        _ => return ErrorClass::Unknown,
    };
    // The low byte is SQLite's primary result code, the rest says more.
    match code.map(|code| (code & 0xff, code)) {
        Some((13, _)) => ErrorClass::Full,
        Some((5 | 6, _)) => ErrorClass::Busy,
        Some((8, _)) => ErrorClass::ReadOnly,
        // NOTADB, CORRUPT, IOERR_DATA, IOERR_CORRUPTFS.
        Some((26 | 11, _) | (10, 8202 | 8458)) => ErrorClass::Corrupt,
        Some((10, _)) => ErrorClass::Io,
        // ERROR, TOOBIG, CONSTRAINT, MISMATCH, RANGE.
        Some((1 | 18 | 19 | 20 | 25, _)) => ErrorClass::Statement,
        _ => ErrorClass::Unknown,
    }
}

/// Shared by all readers and the writer of the database.
#[derive(Clone)]
pub struct DatabaseHealth(Arc<HealthState>);

struct HealthState {
    /// Without its directory: details reach guests, which must not learn the path of the data directory.
    name: String,
    path: PathBuf,
    /// `None`: the database is writable.
    fault: watch::Sender<Option<DatabaseFault>>,
    /// A reader had an error.
    suspicion: Notify,
    recovered: Mutex<Option<Instant>>,
    /// Whether the space that is kept for the database is in use.
    low: AtomicBool,
}

impl DatabaseHealth {
    pub(super) fn new(path: &Path) -> Self {
        Self(Arc::new(HealthState {
            name: path.file_name().map_or_else(|| "the database".into(), |n| n.to_string_lossy().into_owned()),
            path: path.to_owned(),
            fault: watch::Sender::new(None),
            suspicion: Notify::new(),
            recovered: Mutex::default(),
            low: AtomicBool::new(false),
        }))
    }

    pub fn fault(&self) -> Option<DatabaseFault> {
        self.0.fault.borrow().clone()
    }

    /// The disk is full, and writes go to the space that was kept for the database. It is for what ends: new work is
    /// refused with this.
    pub fn space_fault(&self) -> Option<DatabaseFault> {
        self.0.low.load(Ordering::Relaxed).then(|| self.full())
    }

    pub(super) fn set_low(&self, low: bool) {
        self.0.low.store(low, Ordering::Relaxed);
    }

    fn full(&self) -> DatabaseFault {
        let name = &self.0.name;
        self.unwritable(format!("the disk that holds {name} is full: free disk space; the service then continues"))
    }

    /// Notifies of every new fault, and of its end.
    pub fn changes(&self) -> watch::Receiver<Option<DatabaseFault>> {
        self.0.fault.subscribe()
    }

    /// Returns once the database accepts writes. If it did not for a while, returns `grace` later, so that guests can
    /// repeat the reports that were refused meanwhile.
    pub async fn wait_until_writable(&self, grace: Duration) {
        let mut fault = self.changes();
        while fault.wait_for(Option::is_none).await.is_ok() {
            let recovered = *self.0.recovered.lock();
            match recovered.filter(|at| clock::elapsed(*at) < grace) {
                Some(at) => tokio::time::sleep_until(at + grace).await,
                None => return,
            }
        }
    }

    pub(super) async fn suspected(&self) {
        self.0.suspicion.notified().await;
    }

    /// A write reached the disk that is large enough to show that other writes will, too.
    pub(super) fn record_durable_write(&self) {
        let recovered = self.0.fault.send_if_modified(|fault| match fault {
            Some(DatabaseFault { kind: FaultKind::Unwritable | FaultKind::Replaced, .. }) => {
                *fault = None;
                *self.0.recovered.lock() = Some(clock::monotonic());
                true
            }
            Some(DatabaseFault { kind: FaultKind::Damaged, .. }) | None => false,
        });
        if recovered {
            tracing::info!(path = %self.0.path.display(), "the database is writable again");
        }
    }

    /// Records a fault, and returns the current one: damage stays until the next start.
    pub(super) fn record_fault(&self, new: DatabaseFault) -> DatabaseFault {
        let mut holds = new.clone();
        let changed = self.0.fault.send_if_modified(|fault| match fault {
            Some(old) if old.kind == FaultKind::Damaged => {
                holds = old.clone();
                false
            }
            Some(old) if *old == new => false,
            _ => {
                *fault = Some(new);
                true
            }
        });
        if changed {
            metrics::counter!("mayfly_database_faults_total").increment(1);
            tracing::error!(path = %self.0.path.display(), "{}", holds.detail);
        }
        holds
    }

    /// Records an error of a reader. Returns the fault if the database is damaged; reading continues where possible.
    pub(super) fn record_reader_error(&self, error: &sqlx::Error) -> Option<DatabaseFault> {
        match classify(error) {
            ErrorClass::Corrupt => return Some(self.record_fault(self.fault_of(error))),
            ErrorClass::Io => self.0.suspicion.notify_one(),
            _ => {}
        }
        None
    }

    pub(super) fn fault_of(&self, error: &sqlx::Error) -> DatabaseFault {
        let name = &self.0.name;
        let error_text = error.as_database_error().map_or_else(|| error.to_string(), |e| e.to_string());
        match classify(error) {
            ErrorClass::Corrupt => self.damaged(&error_text),
            ErrorClass::Full => self.full(),
            ErrorClass::Busy => self.unwritable(format!("another program has locked {name}: stop that program")),
            ErrorClass::ReadOnly => self.unwritable(format!(
                "{name} cannot be written ({error_text}): check its permissions and how its disk is mounted"
            )),
            ErrorClass::Io | ErrorClass::Statement | ErrorClass::Unknown => self
                .unwritable(format!("{name} could not be written ({error_text}): check its disk; the service retries")),
        }
    }

    pub(super) fn unwritable(&self, detail: impl Into<Arc<str>>) -> DatabaseFault {
        DatabaseFault { kind: FaultKind::Unwritable, detail: detail.into() }
    }

    pub(super) fn too_slow(&self, limit: Duration) -> DatabaseFault {
        self.unwritable(format!(
            "{} did not take a write within {} s: check its disk, and what else writes to it",
            self.0.name,
            limit.as_secs()
        ))
    }

    pub(super) fn damaged(&self, found: &str) -> DatabaseFault {
        let detail = format!(
            "{} is damaged ({found}): the service accepts no requests that write; running guests continue; stop the service, \
             move the database and its -wal and -shm files away, restore a backup, and start it again",
            self.0.name
        );
        DatabaseFault { kind: FaultKind::Damaged, detail: detail.into() }
    }

    fn replaced(&self, file: &str, what: &str) -> DatabaseFault {
        let detail = format!(
            "{file} {what} while the service was running: the service accepts no requests that write; running guests continue; \
             stop the service, put the right files in their place, and start it again"
        );
        DatabaseFault { kind: FaultKind::Replaced, detail: detail.into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

/// The state of the database's files at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FilesSnapshot {
    db: FileId,
    pub(super) size: u64,
    /// Seconds and nanoseconds. Only checkpoints write to the main file, and only the writer makes them.
    pub(super) modified: (i64, i64),
    modified_wal: (i64, i64),
    wal: FileId,
    /// It grows, and is never truncated while it is open.
    wal_size: u64,
    /// Free bytes on their file system.
    pub(super) free: u64,
}

pub(super) enum Compared {
    /// `wrote`: the log was written to since the last check.
    Same { wrote: bool },
    /// The same files, but another program has written to them.
    Written(FilesSnapshot),
}

/// The paths of the database's files.
#[derive(Clone)]
pub(super) struct DatabaseFiles {
    db: PathBuf,
    wal: PathBuf,
    health: DatabaseHealth,
}

impl DatabaseFiles {
    pub(super) fn new(path: &Path, health: DatabaseHealth) -> Self {
        Self { db: path.to_owned(), wal: beside(path, "-wal"), health }
    }

    /// The current state of the files. Both must exist: while a connection is open, so does the write-ahead log.
    pub(super) async fn snapshot(&self) -> Result<FilesSnapshot, DatabaseFault> {
        let paths = self.clone();
        let looked = tokio::task::spawn_blocking(move || {
            // A file system that cannot be measured is not known to be full.
            let free = paths.db.parent().and_then(|dir| files::free(dir).ok()).unwrap_or(u64::MAX);
            Ok((paths.stat(&paths.db)?, paths.stat(&paths.wal)?, free))
        });
        let (db, wal, free) = looked.await.map_err(|error| self.health.unwritable(error.to_string()))??;
        let identity = |meta: &std::fs::Metadata| FileId { device: meta.dev(), inode: meta.ino() };
        Ok(FilesSnapshot {
            db: identity(&db),
            size: db.len(),
            modified: (db.mtime(), db.mtime_nsec()),
            modified_wal: (wal.mtime(), wal.mtime_nsec()),
            wal: identity(&wal),
            wal_size: wal.len(),
            free,
        })
    }

    fn stat(&self, path: &Path) -> Result<std::fs::Metadata, DatabaseFault> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match std::fs::metadata(path) {
            Ok(meta) => Ok(meta),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Err(self.health.replaced(&name, "was removed"))
            }
            // A failed check does not mean that they are gone; writes are refused meanwhile.
            Err(error) => Err(self.health.unwritable(format!("{name} cannot be inspected ({error}); check its disk"))),
        }
    }

    /// Compares the files with an earlier snapshot.
    pub(super) async fn compare(&self, known: &mut FilesSnapshot) -> Result<Compared, DatabaseFault> {
        let now = self.snapshot().await?;
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for (path, old, new) in [(&self.db, known.db, now.db), (&self.wal, known.wal, now.wal)] {
            if old != new {
                return Err(self.health.replaced(&name(path), "was replaced by another file"));
            }
        }
        if (now.size, now.modified) != (known.size, known.modified) || now.wal_size < known.wal_size {
            return Ok(Compared::Written(now));
        }
        let wrote = (now.wal_size, now.modified_wal) != (known.wal_size, known.modified_wal);
        *known = now;
        Ok(Compared::Same { wrote })
    }

    /// Size and modification time of the main file.
    pub(super) async fn main(&self) -> Result<(u64, (i64, i64)), DatabaseFault> {
        let files = self.clone();
        let looked = tokio::task::spawn_blocking(move || files.stat(&files.db)).await;
        let meta = looked.map_err(|error| self.health.unwritable(error.to_string()))??;
        Ok((meta.len(), (meta.mtime(), meta.mtime_nsec())))
    }

    /// Whether the main file is unchanged since the snapshot.
    pub(super) async fn main_is(&self, known: &FilesSnapshot) -> bool {
        let (path, known) = (self.db.clone(), *known);
        let same = tokio::task::spawn_blocking(move || {
            std::fs::metadata(path).is_ok_and(|meta| {
                FileId { device: meta.dev(), inode: meta.ino() } == known.db
                    && (meta.len(), (meta.mtime(), meta.mtime_nsec())) == (known.size, known.modified)
            })
        });
        same.await.unwrap_or(false)
    }
}

/// A file that SQLite keeps beside the database.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}
