//! Jobs of CI systems: one row for each attempt. Only one task changes them, so rows are written as a whole.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};

use super::{
    Ledger, Reader, Result,
    rows::{parse_vm, unreadable},
};
use crate::domain::{
    SourceName, Vm,
    job::Job,
    job_record::{JobKey, JobStatus},
};

/// Filter of a listing.
#[derive(Clone, Debug, Default)]
pub struct JobFilter {
    pub statuses: Vec<JobStatus>,
    pub source: Option<SourceName>,
    pub pool: Option<String>,
    /// Only jobs with smaller sequence numbers.
    pub before: Option<i64>,
    pub limit: u32,
}

/// A job and its place in listings.
#[derive(Clone, Debug)]
pub struct JobRow {
    /// Its sequence number: the order in which jobs were first reported.
    pub seq: i64,
    pub job: Job,
}

fn parse(record: &str) -> Result<Job> {
    serde_json::from_str(record).map_err(|e| unreadable(format!("a job's record: {e}")))
}

impl Ledger {
    pub async fn put_job(&self, job: Job) -> Result<()> {
        let json = serde_json::to_string(&job).map_err(|e| unreadable(e.to_string()))?;
        let JobKey { source, id, attempt } = job.record.key();
        let (source, id) = (String::from(source), id.to_string());
        let updated = job.updated_at.as_millisecond();
        let completed = job.is_over().then_some(updated);
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let status = job.status().as_str();
                    sqlx::query!(
                        "INSERT INTO jobs (source, id, attempt, repository, status, pool, updated_at, completed_at, record)
                         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
                         ON CONFLICT (source, id, attempt) DO UPDATE SET status = excluded.status, pool = excluded.pool,
                             updated_at = excluded.updated_at,
                             completed_at = CASE WHEN excluded.completed_at IS NULL THEN NULL
                                            ELSE COALESCE(completed_at, excluded.completed_at) END,
                             record = excluded.record",
                        source,
                        id,
                        attempt,
                        job.record.repository,
                        status,
                        job.pool,
                        updated,
                        completed,
                        json
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// Deletes jobs that ended before this time.
    pub async fn forget_jobs(&self, before: Timestamp) -> Result<u64> {
        let before = before.as_millisecond();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let gone =
                        sqlx::query!("DELETE FROM jobs WHERE completed_at < ?", before).execute(&mut *db).await?;
                    Ok(gone.rows_affected())
                })
            })
            .await
    }
}

/// Moves the times before which no vm is made for a job by a step of the clock.
pub(super) async fn step_clock(db: &mut SqliteConnection, by: SignedDuration) -> Result<()> {
    let rows = sqlx::query("SELECT seq, record FROM jobs WHERE completed_at IS NULL").fetch_all(&mut *db).await?;
    for row in rows {
        let seq: i64 = row.try_get(0)?;
        let mut job = parse(&row.try_get::<String, _>(1)?)?;
        let Some(at) = job.not_before else { continue };
        job.not_before = Some(at.saturating_add(by).unwrap_or(at));
        let json = serde_json::to_string(&job).map_err(|e| unreadable(e.to_string()))?;
        sqlx::query("UPDATE jobs SET record = ? WHERE seq = ?").bind(json).bind(seq).execute(&mut *db).await?;
    }
    Ok(())
}

impl Reader {
    /// The number of jobs that wait for a runner, for each pool that has any.
    pub async fn jobs_waiting_by_pool(&self) -> Result<BTreeMap<String, u32>> {
        let rows = sqlx::query!(
            r#"SELECT pool AS "pool!: String", COUNT(*) AS "n!: u32" FROM jobs
               WHERE pool IS NOT NULL AND completed_at IS NULL AND status = 'queued' GROUP BY 1"#
        )
        .fetch_all(self.pool())
        .await?;
        Ok(rows.into_iter().map(|row| (row.pool, row.n)).collect())
    }

    pub async fn job(&self, key: &JobKey) -> Result<Option<Job>> {
        let (source, id) = (key.source.as_str(), key.id.to_string());
        let row = sqlx::query!(
            "SELECT record FROM jobs WHERE source = ? AND id = ? AND attempt = ?",
            source,
            id,
            key.attempt
        )
        .fetch_optional(self.pool())
        .await?;
        row.map(|row| parse(&row.record)).transpose()
    }

    /// Jobs that have not ended, oldest first.
    pub async fn open_jobs(&self) -> Result<Vec<Job>> {
        sqlx::query!("SELECT record FROM jobs WHERE completed_at IS NULL ORDER BY seq")
            .fetch_all(self.pool())
            .await?
            .iter()
            .map(|row| parse(&row.record))
            .collect()
    }

    /// Newest first.
    pub async fn jobs(&self, filter: &JobFilter) -> Result<Vec<JobRow>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT seq, record FROM jobs WHERE TRUE");
        if !filter.statuses.is_empty() {
            query.push(" AND status IN (");
            let mut statuses = query.separated(", ");
            for status in &filter.statuses {
                statuses.push_bind(status.as_str());
            }
            query.push(")");
        }
        if let Some(source) = &filter.source {
            query.push(" AND source = ").push_bind(source.as_str().to_owned());
        }
        if let Some(pool) = &filter.pool {
            query.push(" AND pool = ").push_bind(pool.clone());
        }
        if let Some(before) = filter.before {
            query.push(" AND seq < ").push_bind(before);
        }
        query.push(" ORDER BY seq DESC LIMIT ").push_bind(i64::from(filter.limit));
        let rows = query.build().fetch_all(self.pool()).await?;
        rows.iter().map(|row| Ok(JobRow { seq: row.try_get(0)?, job: parse(&row.try_get::<String, _>(1)?)? })).collect()
    }

    /// Repositories of known jobs of this source.
    pub async fn job_repositories(&self, source: &SourceName) -> Result<Vec<String>> {
        let source = source.as_str();
        let rows = sqlx::query!("SELECT DISTINCT repository FROM jobs WHERE source = ?", source)
            .fetch_all(self.pool())
            .await?;
        Ok(rows.into_iter().map(|row| row.repository).collect())
    }

    /// Vms whose runner has this name at GitHub, live or not, newest first: names that callers choose may be
    /// repeated, also in several scopes at once.
    pub async fn vms_of_runner(&self, name: &str) -> Result<Vec<Vm>> {
        let rows = sqlx::query!(
            "SELECT record FROM vms WHERE json_extract(record, '$.registered.name') = ? ORDER BY id DESC",
            name
        )
        .fetch_all(self.pool())
        .await?;
        rows.iter().map(|row| parse_vm(&row.record)).collect()
    }
}

#[cfg(test)]
#[path = "jobs_tests.rs"]
mod tests;
