//! The connections for reads. An I/O error makes the writer check the database. An error that shows corruption is
//! recorded as damage at once.

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::BoxStream};
use sqlx::{
    Either, Execute, Executor, SqlStr, Sqlite, SqlitePool,
    sqlite::{SqliteQueryResult, SqliteRow, SqliteStatement, SqliteTypeInfo},
};

use super::health::DatabaseHealth;

#[derive(Clone, Debug)]
pub struct ReadPool {
    pool: SqlitePool,
    health: DatabaseHealth,
}

impl std::fmt::Debug for DatabaseHealth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Health").field(&self.fault()).finish()
    }
}

impl ReadPool {
    pub(super) fn new(pool: SqlitePool, health: DatabaseHealth) -> Self {
        Self { pool, health }
    }

    /// An error that shows damage of the database is returned as such.
    fn note<T>(health: &DatabaseHealth, result: sqlx::Result<T>) -> sqlx::Result<T> {
        result.map_err(|error| match health.record_reader_error(&error) {
            Some(fault) => sqlx::Error::AnyDriverError(Box::new(fault)),
            None => error,
        })
    }
}

impl<'p> Executor<'p> for &'p ReadPool {
    type Database = Sqlite;

    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Either<SqliteQueryResult, SqliteRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        let health = self.health.clone();
        self.pool.fetch_many(query).map(move |step| ReadPool::note(&health, step)).boxed()
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Option<SqliteRow>>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Sqlite>,
    {
        let health = self.health.clone();
        self.pool.fetch_optional(query).map(move |row| ReadPool::note(&health, row)).boxed()
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, sqlx::Result<SqliteStatement>>
    where
        'p: 'e,
    {
        let health = self.health.clone();
        self.pool.prepare_with(sql, parameters).map(move |made| ReadPool::note(&health, made)).boxed()
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, sqlx::Result<sqlx::Describe<Sqlite>>>
    where
        'p: 'e,
    {
        self.pool.describe(sql)
    }
}
