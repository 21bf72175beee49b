//! The one task that writes.
//!
//! Work arrives as closures over the connection. Whatever has queued up while the last commit was being made durable goes into
//! one transaction, each piece behind a savepoint of its own, and all of it is answered after the common commit: the disk is
//! asked once however many wait.

use futures_util::future::BoxFuture;
use sqlx::{Connection, SqliteConnection, SqlitePool};
use tokio::sync::{mpsc, oneshot};

use super::{Result, StoreError};

/// Enough to make the fsync cheap, small enough that one transaction stays short.
const BATCH: usize = 64;

type Finish = Box<dyn FnOnce(Result<()>) + Send>;
/// `Ok`: to be told of the commit. `Err`: the work failed and its changes must not stay.
type Work = Box<dyn for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<Finish, Finish>> + Send>;

#[derive(Clone)]
pub(super) struct Writer {
    queue: mpsc::Sender<Work>,
}

pub(super) fn start(connection: SqliteConnection, readers: SqlitePool) -> (Writer, tokio::task::JoinHandle<()>) {
    let (queue, work) = mpsc::channel(1024);
    (Writer { queue }, tokio::spawn(run(connection, readers, work)))
}

impl Writer {
    /// Runs `f` in a transaction and answers once it is durable. An `Err` of `f` leaves no trace in the database.
    pub(super) async fn write<T, F>(&self, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
    {
        self.write_and_tell(f, |_| {}).await
    }

    /// The same; `tell` is called by the writer right after the commit, in the order of the commits and whether or not the
    /// caller still waits for its answer. What was committed and not told would be known to nobody.
    pub(super) async fn write_and_tell<T, F, G>(&self, f: F, tell: G) -> Result<T>
    where
        T: Send + 'static,
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<T>> + Send + 'static,
        G: FnOnce(&T) + Send + 'static,
    {
        let (reply, answer) = oneshot::channel::<Result<T>>();
        let work: Work = Box::new(move |connection| {
            Box::pin(async move {
                match f(connection).await {
                    // Nobody may be listening any more; the write stands all the same.
                    Ok(value) => Ok(Box::new(move |committed: Result<()>| {
                        if committed.is_ok() {
                            tell(&value);
                        }
                        let _ = reply.send(committed.map(|()| value));
                    }) as Finish),
                    Err(error) => Err(Box::new(move |_: Result<()>| {
                        let _ = reply.send(Err(error));
                    }) as Finish),
                }
            })
        });
        self.queue.send(work).await.map_err(|_| StoreError::WriterGone)?;
        answer.await.map_err(|_| StoreError::WriterGone)?
    }
}

async fn run(mut connection: SqliteConnection, readers: SqlitePool, mut queue: mpsc::Receiver<Work>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let mut finish = Vec::with_capacity(batch.len());
        let committed = commit(&mut connection, std::mem::take(&mut batch), &mut finish).await;
        if let Err(error) = &committed {
            tracing::error!(error = %error, "a write to the database failed");
        }
        for f in finish {
            f(match &committed {
                Ok(()) => Ok(()),
                Err(error) => Err(StoreError::Sqlite(sqlx::Error::Protocol(error.to_string()))),
            });
        }
    }
    // All senders are gone: the service ends. Whoever closes last brings the WAL into the database file and removes it, and
    // readers cannot.
    readers.close().await;
    let _ = connection.close().await;
}

async fn commit(connection: &mut SqliteConnection, batch: Vec<Work>, finish: &mut Vec<Finish>) -> sqlx::Result<()> {
    // Immediate: a deferred transaction that reads before it writes can fail half-way with "busy".
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let alone = batch.len() == 1;
    for work in batch {
        if alone {
            match work(&mut transaction).await {
                Ok(done) => finish.push(done),
                Err(failed) => {
                    transaction.rollback().await?;
                    failed(Ok(()));
                    return Ok(());
                }
            }
        } else {
            let mut savepoint = transaction.begin().await?;
            match work(&mut savepoint).await {
                Ok(done) => {
                    savepoint.commit().await?;
                    finish.push(done);
                }
                Err(failed) => {
                    savepoint.rollback().await?;
                    failed(Ok(()));
                }
            }
        }
    }
    transaction.commit().await
}
