//! The only task that writes to the database.
//!
//! Work arrives as closures over the connection. Everything that was queued during the last commit goes into one
//! transaction, each closure behind its own savepoint, and all of it is answered after the common commit: one disk
//! flush for all of them.
//!
//! SQLite ends a transaction by itself when the disk is full or cannot be read, and the library above it does not
//! notice. So after a failure with an unknown result the connection is dropped, all callers of the batch are told to
//! retry, and the next batch opens a new connection.

use std::{
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use sqlx::{ConnectOptions, Connection, Row, SqliteConnection, SqlitePool, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::{
    DatabaseError, WriteError,
    health::{Compared, DatabaseFault, DatabaseFiles, DatabaseHealth, ErrorClass, FaultKind, FilesSnapshot, classify},
    integrity::{self, CheckError, Depth},
    reserve::{DatabaseReserve, REFILL_EVERY},
};
use crate::platform::clock;

/// Large enough to share one fsync, small enough to keep a transaction short.
const BATCH: usize = 64;
/// Pause between two tries after a failed write.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Opening or closing a file that takes longer is aborted and retried.
const OPEN_WITHIN: Duration = Duration::from_secs(5);
/// How long readiness waits for its write.
const PROOF_WITHIN: Duration = Duration::from_secs(5);
/// How long the result of a proof is cached, so that readiness checks cannot keep the writer busy.
const PROOF_LASTS: Duration = Duration::from_secs(1);
/// Size of the test write, in bytes: more than a request that creates a vm. On an almost full disk smaller writes
/// succeed for a while, and prove nothing about larger ones.
const PROBE: i64 = 128 << 10;
/// Length of the write-ahead log at which it is checkpointed, in pages.
const CHECKPOINT: i64 = 4000;
/// The same while the disk is full: then the log must not grow.
const CHECKPOINT_WHEN_FULL: i64 = 250;
/// Requests between two checks of the log's length.
const LOOK_AT_LOG: usize = 16;

type Finish = Box<dyn FnOnce(CommitOutcome) + Send>;

#[derive(Clone)]
enum CommitOutcome {
    Committed,
    /// Committed, but the check of the files failed afterwards, so the next start may not find the write. The caller
    /// gets the fault.
    CommittedUnverified(DatabaseFault),
    Failed(DatabaseFault),
}

/// A failed request. Its changes must be rolled back.
struct WriteFailure {
    /// SQLite's error, if it was one.
    sqlite: Option<sqlx::Error>,
    /// Answers the caller with this error; `None`: with the request's own one, which is not SQLite's.
    answer: Box<dyn FnOnce(Option<DatabaseError>) + Send>,
}

trait WriteRequest: Send {
    fn run<'c>(self: Box<Self>, db: &'c mut SqliteConnection) -> BoxFuture<'c, Result<Finish, WriteFailure>>;
    fn refuse(self: Box<Self>, fault: DatabaseFault);
    /// Whether its success shows that other writes will succeed.
    fn proves(&self) -> bool;
}

struct Write<T, E, F, G> {
    work: F,
    tell: G,
    reply: oneshot::Sender<Result<T, E>>,
    proves: bool,
}

impl<T, E, F, G> WriteRequest for Write<T, E, F, G>
where
    T: Send + 'static,
    E: WriteError,
    F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    G: FnOnce(&T) + Send + 'static,
{
    fn run<'c>(self: Box<Self>, db: &'c mut SqliteConnection) -> BoxFuture<'c, Result<Finish, WriteFailure>> {
        Box::pin(async move {
            let Self { work, tell, reply, .. } = *self;
            // A panic in one request must not end the task that all requests need.
            let ran = AssertUnwindSafe(async { work(db).await }).catch_unwind().await;
            match ran.unwrap_or(Err(DatabaseError::Panicked.into())) {
                Ok(value) => Ok(Box::new(move |outcome| {
                    let answer = match outcome {
                        CommitOutcome::Committed => {
                            tell(&value);
                            Ok(value)
                        }
                        CommitOutcome::CommittedUnverified(fault) => {
                            tell(&value);
                            Err(DatabaseError::Fault(fault).into())
                        }
                        CommitOutcome::Failed(fault) => Err(DatabaseError::Fault(fault).into()),
                    };
                    // The caller may be gone; the write counts in any case.
                    let _ = reply.send(answer);
                }) as Finish),
                Err(error) => {
                    let (sqlite, own) = match error.into_sqlite() {
                        Ok(sqlite) => (Some(sqlite), None),
                        Err(own) => (None, Some(own)),
                    };
                    let answer = Box::new(move |error: Option<DatabaseError>| {
                        if let Some(error) = error.map(E::from).or(own) {
                            let _ = reply.send(Err(error));
                        }
                    });
                    Err(WriteFailure { sqlite, answer })
                }
            }
        })
    }

    fn refuse(self: Box<Self>, fault: DatabaseFault) {
        let _ = self.reply.send(Err(DatabaseError::Fault(fault).into()));
    }

    fn proves(&self) -> bool {
        self.proves
    }
}

#[derive(Clone)]
pub struct Writer {
    queue: mpsc::Sender<Box<dyn WriteRequest>>,
    health: DatabaseHealth,
    /// The result of the last proof, and its time.
    proof: Arc<tokio::sync::Mutex<Option<WriteProof>>>,
}

type WriteProof = (Instant, Result<(), DatabaseFault>);

/// Takes over a valid connection.
pub(super) async fn start(
    path: &Path,
    options: SqliteConnectOptions,
    connection: SqliteConnection,
    readers: SqlitePool,
    health: DatabaseHealth,
    reserve: DatabaseReserve,
) -> Result<(Writer, JoinHandle<()>), DatabaseFault> {
    let files = DatabaseFiles::new(path, health.clone());
    let known = files.snapshot().await?;
    let (queue, requests) = mpsc::channel(1024);
    let task = Task {
        path: path.to_owned(),
        options,
        connection: Some(connection),
        readers,
        files,
        known,
        health: health.clone(),
        suspect: false,
        pause: FIRST_PAUSE,
        try_at: clock::monotonic(),
        since_look: 0,
        checking: None,
        reserve,
        refill_at: clock::monotonic(),
    };
    Ok((Writer { queue, health, proof: Arc::default() }, tokio::spawn(task.run(requests))))
}

impl Writer {
    /// Runs `f` in a transaction and answers once it is durable. An `Err` of `f` leaves no change in the database.
    pub async fn write<T, E, F>(&self, f: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: WriteError,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
    {
        self.write_and_tell(f, |_| {}).await
    }

    /// The same; the writer calls `tell` right after the commit, in the order of the commits, even if the caller no
    /// longer waits for its answer. Otherwise subscribers would miss the change.
    pub async fn write_and_tell<T, E, F, G>(&self, work: F, tell: G) -> Result<T, E>
    where
        T: Send + 'static,
        E: WriteError,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T, E>> + Send + 'static,
        G: FnOnce(&T) + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.send(Write { work, tell, reply, proves: false }, answer).await
    }

    async fn send<T: 'static, E: WriteError>(
        &self,
        request: impl WriteRequest + 'static,
        answer: oneshot::Receiver<Result<T, E>>,
    ) -> Result<T, E> {
        self.queue.send(Box::new(request)).await.map_err(|_| DatabaseError::WriterGone)?;
        answer.await.map_err(|_| DatabaseError::WriterGone)?
    }

    pub fn health(&self) -> &DatabaseHealth {
        &self.health
    }

    /// Tests by writing whether a write reaches the disk.
    pub async fn prove(&self) -> Result<(), DatabaseFault> {
        // Writes succeed, but the service takes no new work.
        if let Some(fault) = self.health.space_fault() {
            return Err(fault);
        }
        let mut proof = self.proof.lock().await;
        if let Some((at, result)) = &*proof
            && clock::elapsed(*at) < PROOF_LASTS
        {
            return result.clone();
        }
        // Small while there is no fault, because readiness may be checked every second.
        let (probe, answer) = probe(if self.health.fault().is_some() { PROBE } else { 16 });
        let result = match timeout(PROOF_WITHIN, self.send(probe, answer)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(DatabaseError::Fault(fault))) => Err(fault),
            Ok(Err(error)) => Err(self.health.unwritable(error.to_string())),
            Err(_) => Err(self.health.too_slow(PROOF_WITHIN)),
        };
        *proof = Some((clock::monotonic(), result.clone()));
        result
    }
}

/// A write that only tests whether writes succeed.
fn probe(bytes: i64) -> (impl WriteRequest, oneshot::Receiver<Result<(), DatabaseError>>) {
    fn work<F>(f: F) -> F
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<(), DatabaseError>>,
    {
        f
    }
    let (reply, answer) = oneshot::channel();
    let work = work(move |db| {
        Box::pin(async move {
            // SQLite does not write a page whose content is unchanged.
            let write = sqlx::query("UPDATE store_state SET probe = randomblob(?) WHERE id = 1").bind(bytes);
            write.execute(db).await?;
            Ok(())
        })
    });
    (Write { work, tell: |(): &()| {}, reply, proves: bytes >= PROBE }, answer)
}

struct Task {
    path: PathBuf,
    options: SqliteConnectOptions,
    /// `None` after a failure with an unknown result, until it is opened again.
    connection: Option<SqliteConnection>,
    readers: SqlitePool,
    files: DatabaseFiles,
    known: FilesSnapshot,
    health: DatabaseHealth,
    /// Whether the whole file has to be checked before the next write.
    suspect: bool,
    pause: Duration,
    /// While writes fail: when the next try is due.
    try_at: Instant,
    since_look: usize,
    /// The check of a database that is too large to be checked between two writes.
    checking: Option<JoinHandle<()>>,
    reserve: DatabaseReserve,
    /// When the next try to complete the reserve is due.
    refill_at: Instant,
}

impl Task {
    async fn run(mut self, mut queue: mpsc::Receiver<Box<dyn WriteRequest>>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let health = self.health.clone();
            // Damage is not retried: overwritten data does not come back, and further writes would be lost.
            let retry = health.fault().is_some_and(|fault| fault.kind != FaultKind::Damaged);
            tokio::select! {
                biased;
                received = queue.recv_many(&mut batch, BATCH) => {
                    if received == 0 {
                        break;
                    }
                    self.serve(std::mem::take(&mut batch)).await;
                }
                () = health.suspected() => {
                    self.suspect = true;
                    if let Err(fault) = self.check_files().await {
                        self.record_failure(fault);
                    }
                }
                () = tokio::time::sleep_until(self.refill_at), if self.reserve.is_incomplete() || health.space_fault().is_some() => {
                    self.reserve.refill().await;
                    self.refill_at = clock::monotonic() + REFILL_EVERY;
                }
                () = tokio::time::sleep_until(self.try_at), if retry => {
                    self.serve(vec![Box::new(probe(PROBE).0)]).await;
                }
            }
        }
        self.close().await;
    }

    /// All senders are dropped: the service ends. The last connection to close checkpoints the WAL into the database
    /// file and removes it, which readers cannot do.
    async fn close(mut self) {
        if let Some(checking) = self.checking.take() {
            checking.abort();
        }
        if let Err(fault) = self.check_files().await {
            self.record_failure(fault);
        }
        self.readers.close().await;
        let Some(mut connection) = self.connection.take() else { return };
        match self.health.fault().map(|fault| fault.kind) {
            // Closing would write our log into the file that is now at the database's path, for example a restored
            // backup. The end of the process closes the files without writing.
            Some(FaultKind::Replaced | FaultKind::Damaged) => return std::mem::forget(connection),
            Some(FaultKind::Unwritable) => {}
            None => {
                let mark = sqlx::query("UPDATE store_state SET closed_cleanly = 1 WHERE id = 1");
                if let Err(error) = mark.execute(&mut connection).await {
                    tracing::warn!(%error, "cannot mark the database as cleanly closed; the next start checks all of it");
                }
            }
        }
        let _ = connection.close().await;
    }

    async fn serve(&mut self, batch: Vec<Box<dyn WriteRequest>>) {
        let requests = batch.len();
        let proves = batch.iter().any(|request| request.proves());
        let mut batch = batch.into_iter();
        let mut finish = Vec::with_capacity(requests);
        let outcome = match self.commit(&mut batch, &mut finish).await {
            Ok(()) => match self.check_files().await {
                Ok(wrote) => {
                    if wrote && proves {
                        self.health.record_durable_write();
                        self.pause = FIRST_PAUSE;
                    }
                    CommitOutcome::Committed
                }
                Err(fault) => CommitOutcome::CommittedUnverified(self.record_failure(fault)),
            },
            Err(fault) => CommitOutcome::Failed(self.record_failure(fault)),
        };
        for f in finish {
            let outcome = outcome.clone();
            if std::panic::catch_unwind(AssertUnwindSafe(move || f(outcome))).is_err() {
                tracing::error!("a callback after a commit panicked");
            }
        }
        match outcome {
            CommitOutcome::Committed => {
                self.since_look += requests;
                if self.since_look >= LOOK_AT_LOG {
                    self.since_look = 0;
                    self.checkpoint().await;
                }
            }
            // Requests that were not run yet also need an answer.
            CommitOutcome::CommittedUnverified(fault) | CommitOutcome::Failed(fault) => {
                batch.for_each(|request| request.refuse(fault.clone()))
            }
        }
    }

    /// Records the fault and returns the current one. The next try waits a little.
    fn record_failure(&mut self, fault: DatabaseFault) -> DatabaseFault {
        self.try_at = clock::monotonic() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        self.health.record_fault(fault)
    }

    async fn commit(&mut self, batch: &mut Batch, finish: &mut Vec<Finish>) -> Result<(), DatabaseFault> {
        if let Some(fault) = self.health.fault()
            && fault.kind == FaultKind::Damaged
        {
            return Err(fault);
        }
        self.check_files().await?;
        self.reserve.make_headroom(self.known.free).await;
        let mut connection = self.open().await?;
        match transact(&mut connection, &self.health, batch, finish).await {
            Ok(()) => {
                self.connection = Some(connection);
                Ok(())
            }
            Err(error) => {
                self.suspect |= classify(&error) == ErrorClass::Io;
                // Closing rolls the transaction back. Readers have the log open, so nothing else happens.
                let _ = timeout(OPEN_WITHIN, connection.close()).await;
                if classify(&error) == ErrorClass::Full {
                    self.reserve.disk_was_full().await;
                }
                Err(self.health.fault_of(&error))
            }
        }
    }

    /// The connection, reopened if the last one was dropped.
    async fn open(&mut self) -> Result<SqliteConnection, DatabaseFault> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        let opened = timeout(OPEN_WITHIN, self.options.clone().create_if_missing(false).connect()).await;
        let connection =
            opened.map_err(|_| self.health.too_slow(OPEN_WITHIN))?.map_err(|error| self.health.fault_of(&error))?;
        tracing::debug!("reopened the database connection for writes");
        Ok(connection)
    }

    /// Checks whether the files are still the ones that are open, and whether only this service has written to them.
    /// Returns whether something was written since the last check.
    async fn check_files(&mut self) -> Result<bool, DatabaseFault> {
        match self.files.compare(&mut self.known).await {
            Ok(Compared::Same { wrote }) => {
                if self.suspect {
                    self.check(self.known).await?;
                }
                Ok(wrote)
            }
            Ok(Compared::Written(now)) => {
                tracing::warn!(path = %self.path.display(), "another program has written to the database; checking it");
                self.check(now).await?;
                Ok(false)
            }
            Err(fault) => {
                self.checkpoint_before_loss().await;
                Err(fault)
            }
        }
    }

    async fn check(&mut self, seen: FilesSnapshot) -> Result<(), DatabaseFault> {
        if integrity::is_quick(seen.size) {
            let checked = timeout(OPEN_WITHIN, integrity::check_beside(&self.path, Depth::Pages)).await;
            checked.map_err(|_| self.health.too_slow(OPEN_WITHIN))?.map_err(|error| found(&self.health, error))?;
        } else if self.checking.as_ref().is_none_or(JoinHandle::is_finished) {
            self.checking = Some(tokio::spawn(check_later(self.path.clone(), Depth::Pages, self.health.clone())));
        }
        self.suspect = false;
        self.known = seen;
        Ok(())
    }

    /// If the log was removed from its directory, its content is checkpointed while that is still possible: the next
    /// start would not find it. Never into a file that another program has written to.
    async fn checkpoint_before_loss(&mut self) {
        if let Some(connection) = &mut self.connection
            && self.files.main_is(&self.known).await
        {
            let saved = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(connection);
            let _ = timeout(OPEN_WITHIN, saved).await;
            if let Ok((size, modified)) = self.files.main().await {
                (self.known.size, self.known.modified) = (size, modified);
            }
        }
    }

    /// Checkpoints the log when it is long. A failure does no harm: the log grows, and the next check tries again.
    /// The main file is written only by checkpoints of this task: here and in
    /// `checkpoint_before_loss`. Each of them updates `known`, so any other change was made by another program.
    async fn checkpoint(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        let longest = if self.reserve.is_incomplete() { CHECKPOINT_WHEN_FULL } else { CHECKPOINT };
        match log_length(connection, "PRAGMA wal_checkpoint(NOOP)").await {
            Ok(waiting) if waiting < longest => return,
            Ok(_) => {}
            Err(error) => return tracing::warn!(%error, "cannot read the length of the database's write-ahead log"),
        }
        let made = log_length(connection, "PRAGMA wal_checkpoint(PASSIVE)").await;
        if let Ok((size, modified)) = self.files.main().await {
            (self.known.size, self.known.modified) = (size, modified);
        }
        if let Err(error) = made {
            self.suspect |= matches!(classify(&error), ErrorClass::Io | ErrorClass::Corrupt);
            tracing::warn!(%error, "cannot checkpoint the database's write-ahead log; it grows until a checkpoint succeeds");
        }
    }
}

/// Number of pages in the log that are not in the database after this checkpoint.
async fn log_length(connection: &mut SqliteConnection, checkpoint: &'static str) -> sqlx::Result<i64> {
    let row = sqlx::query(checkpoint).fetch_one(connection).await?;
    let (all, done): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
    Ok(all - done)
}

type Batch = std::vec::IntoIter<Box<dyn WriteRequest>>;

/// An error leaves the connection in an unknown state, and nothing of the batch in the database. Requests that were
/// not run are still in `batch`.
async fn transact(
    connection: &mut SqliteConnection,
    health: &DatabaseHealth,
    batch: &mut Batch,
    finish: &mut Vec<Finish>,
) -> sqlx::Result<()> {
    // Immediate: a deferred transaction that reads before it writes can fail half-way with "busy".
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let alone = batch.len() == 1;
    for request in batch.by_ref() {
        if alone {
            match request.run(&mut transaction).await {
                Ok(done) => finish.push(done),
                Err(failure) => return give_up(failure, transaction.rollback().await, health),
            }
        } else {
            let mut savepoint = match transaction.begin().await {
                Ok(savepoint) => savepoint,
                Err(error) => {
                    request.refuse(health.fault_of(&error));
                    return Err(error);
                }
            };
            match request.run(&mut savepoint).await {
                Ok(done) => {
                    finish.push(done);
                    savepoint.commit().await?;
                }
                Err(failure) => give_up(failure, savepoint.rollback().await, health)?,
            }
        }
    }
    transaction.commit().await
}

/// Answers a failed request. An error: more than that request failed.
fn give_up(failure: WriteFailure, rolled_back: sqlx::Result<()>, health: &DatabaseHealth) -> sqlx::Result<()> {
    let WriteFailure { sqlite, answer } = failure;
    let doubt = match (sqlite, rolled_back) {
        (Some(error), rolled_back) if classify(&error) != ErrorClass::Statement || rolled_back.is_err() => error,
        (own, Ok(())) => {
            answer(own.map(DatabaseError::Sqlite));
            return Ok(());
        }
        (_, Err(error)) => error,
    };
    answer(Some(health.fault_of(&doubt).into()));
    Err(doubt)
}

/// Checks a database that is too large to be checked while requests wait.
pub(super) async fn check_later(path: PathBuf, depth: Depth, health: DatabaseHealth) {
    match integrity::check_beside(&path, depth).await {
        Ok(()) => tracing::debug!("the check of the whole database found no damage"),
        Err(error) => match found(&health, error) {
            fault if fault.kind == FaultKind::Damaged => drop(health.record_fault(fault)),
            fault => tracing::warn!("cannot check the database: {}", fault.detail),
        },
    }
}

fn found(health: &DatabaseHealth, error: CheckError) -> DatabaseFault {
    match error {
        CheckError::Found(what) => health.damaged(&what),
        CheckError::Sqlite(error) => health.fault_of(&error),
    }
}
