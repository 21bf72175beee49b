//! Pools that were created over the API, one row each, and counts of vms by pool.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use sqlx::SqliteConnection;

use super::{
    Ledger, Reader, Result,
    rows::{parse_vm, unreadable},
};
use crate::domain::{Code, Error, Fault, Pool, State, Vm, pool::PoolSource};

/// Limit of stored pools: every pool is compared with every job.
pub const MOST_POOLS: i64 = 1000;

/// A stored pool.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredPool {
    pub pool: Pool,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

/// A pool and its origin.
#[derive(Clone, Debug)]
pub struct KnownPool {
    pub pool: Pool,
    pub source: PoolSource,
    /// For pools of the API.
    pub stored: Option<StoredPool>,
}

/// Why the newest vm of a pool was refused, by the pool's name. In memory only: a lasting cause fails again after a
/// start.
#[derive(Clone, Debug, Default)]
pub struct PoolFaults(Arc<Mutex<BTreeMap<String, Fault>>>);

impl PoolFaults {
    fn faults(&self) -> MutexGuard<'_, BTreeMap<String, Fault>> {
        self.0.lock()
    }

    pub fn of(&self, pool: &str) -> Option<Fault> {
        self.faults().get(pool).cloned()
    }

    pub fn clear(&self, pool: &str) {
        self.faults().remove(pool);
    }

    pub fn set(&self, pool: &str, error: &Error, at: Timestamp) {
        self.faults().insert(pool.to_owned(), Fault { code: error.code, detail: error.detail.clone(), at });
    }
}

/// Live vms of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolVms {
    pub queued: u32,
    /// Including the queued ones.
    pub live: u32,
}

impl Ledger {
    /// Creates or replaces the pool. Returns whether it is new.
    pub async fn put_pool(&self, pool: Pool, at: Timestamp) -> Result<bool> {
        let changes = self.changes().clone();
        self.writer
            .write_and_tell(
                move |db| Box::pin(async move { put(db, &pool, at).await }),
                move |_: &bool| changes.signal_pools(),
            )
            .await
    }

    /// Returns whether it existed.
    pub async fn remove_pool(&self, name: &str) -> Result<bool> {
        let name = name.to_owned();
        let changes = self.changes().clone();
        self.writer
            .write_and_tell(
                move |db| {
                    Box::pin(async move {
                        let gone = sqlx::query!("DELETE FROM pools WHERE name = ?", name).execute(&mut *db).await?;
                        Ok(gone.rows_affected() > 0)
                    })
                },
                move |_: &bool| changes.signal_pools(),
            )
            .await
    }
}

async fn put(db: &mut SqliteConnection, pool: &Pool, at: Timestamp) -> Result<bool> {
    let json = serde_json::to_string(pool).map_err(|e| unreadable(e.to_string()))?;
    let millis = at.as_millisecond();
    let there = sqlx::query!("UPDATE pools SET record = ?, updated_at = ? WHERE name = ?", json, millis, pool.name)
        .execute(&mut *db)
        .await?;
    if there.rows_affected() > 0 {
        return Ok(false);
    }
    let others = sqlx::query!(r#"SELECT COUNT(*) AS "n!: i64" FROM pools"#).fetch_one(&mut *db).await?.n;
    if others >= MOST_POOLS {
        let detail = format!("there are {MOST_POOLS} pools already; remove one that is not needed any more");
        return Err(Error::new(Code::RequestInvalid, detail).field("path:name", "a new pool is one too many").into());
    }
    sqlx::query!(
        "INSERT INTO pools (name, created_at, updated_at, record) VALUES (?, ?, ?, ?)",
        pool.name,
        millis,
        millis,
        json
    )
    .execute(&mut *db)
    .await?;
    Ok(true)
}

fn parse(record: &str, created_at: i64, updated_at: i64) -> Result<StoredPool> {
    let time = |at| Timestamp::from_millisecond(at).map_err(|e| unreadable(format!("a time: {e}")));
    Ok(StoredPool {
        pool: serde_json::from_str(record).map_err(|e| unreadable(format!("a pool's record: {e}")))?,
        created_at: time(created_at)?,
        updated_at: time(updated_at)?,
    })
}

impl Reader {
    pub async fn pool_named(&self, name: &str) -> Result<Option<StoredPool>> {
        sqlx::query!("SELECT record, created_at, updated_at FROM pools WHERE name = ?", name)
            .fetch_optional(self.pool())
            .await?
            .map(|row| parse(&row.record, row.created_at, row.updated_at))
            .transpose()
    }

    /// By name.
    pub async fn pools(&self) -> Result<Vec<StoredPool>> {
        sqlx::query!("SELECT record, created_at, updated_at FROM pools ORDER BY name")
            .fetch_all(self.pool())
            .await?
            .iter()
            .map(|row| parse(&row.record, row.created_at, row.updated_at))
            .collect()
    }

    /// All pools by name: a pool of the configuration hides one of the API with the same name.
    pub async fn known_pools(&self, configured: &[Pool]) -> Result<BTreeMap<String, KnownPool>> {
        let stored = self.pools().await?.into_iter().map(|stored| {
            let pool = stored.pool.clone();
            KnownPool { pool, source: PoolSource::Api, stored: Some(stored) }
        });
        let configured =
            configured.iter().map(|pool| KnownPool { pool: pool.clone(), source: PoolSource::Config, stored: None });
        // The later of two entries with the same name stays.
        Ok(stored.chain(configured).map(|known| (known.pool.name.clone(), known)).collect())
    }

    /// Counts for every pool that has live vms, removed pools included.
    pub async fn vms_by_pool(&self) -> Result<BTreeMap<String, PoolVms>> {
        let rows = sqlx::query!(
            r#"SELECT pool AS "pool!: String", state, COUNT(*) AS "n!: u32" FROM vms
               WHERE pool IS NOT NULL AND deleted_at IS NULL GROUP BY 1, 2"#
        )
        .fetch_all(self.pool())
        .await?;
        let mut pools: BTreeMap<String, PoolVms> = BTreeMap::new();
        for row in rows {
            let vms = pools.entry(row.pool).or_default();
            vms.live += row.n;
            if row.state == State::Queued.as_str() {
                vms.queued += row.n;
            }
        }
        Ok(pools)
    }

    /// The pool's newest vm that failed, among the stored ones.
    pub async fn newest_failed_of_pool(&self, pool: &str) -> Result<Option<Vm>> {
        let row = sqlx::query!(
            r#"SELECT record FROM vms WHERE pool = ?
               AND json_extract(record, '$.outcome.result') IN ('failed', 'lost') ORDER BY id DESC LIMIT 1"#,
            pool
        )
        .fetch_optional(self.pool())
        .await?;
        row.map(|row| parse_vm(&row.record)).transpose()
    }
}
