//! Reads vms, their events, the queue and leases.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::{
    Result,
    readers::Readers,
    rows::{parse_id, parse_vm, unreadable},
};
use crate::domain::{Event, QueueReason, State, Vm, VmId, capacity::Usage, event::Recorded};

/// Filter of a listing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: every state but `deleted`; with a job, every state.
    pub states: Vec<State>,
    pub name: Option<String>,
    /// Name or digest.
    pub template: Option<String>,
    pub labels: Vec<(String, String)>,
    pub pool: Option<String>,
    /// A job of GitHub that the vm was given.
    pub job: Option<u64>,
    /// Only vms older than this one.
    pub before: Option<VmId>,
    pub limit: u32,
}

/// Read-only access to the last commit.
#[derive(Clone)]
pub struct Reader {
    pub(super) pool: Readers,
}

impl Reader {
    pub(super) fn new(pool: Readers) -> Self {
        Self { pool }
    }

    pub(super) fn pool(&self) -> &Readers {
        &self.pool
    }

    pub async fn vm(&self, id: VmId) -> Result<Option<Vm>> {
        let id = id.to_string();
        let row = sqlx::query!("SELECT record FROM vms WHERE id = ?", id).fetch_optional(&self.pool).await?;
        row.map(|row| parse_vm(&row.record)).transpose()
    }

    pub async fn live_vm_named(&self, name: &str) -> Result<Option<Vm>> {
        let row = sqlx::query!("SELECT record FROM vms WHERE name = ? AND deleted_at IS NULL", name)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| parse_vm(&row.record)).transpose()
    }

    /// Newest first.
    pub async fn vms(&self, filter: &Filter) -> Result<Vec<Vm>> {
        let mut query = QueryBuilder::<Sqlite>::new("SELECT record FROM vms WHERE ");
        if filter.states.is_empty() {
            // A query by job is usually made after the vm has ended.
            query.push(if filter.job.is_some() { "TRUE" } else { "deleted_at IS NULL" });
        } else {
            query.push("state IN (");
            let mut states = query.separated(", ");
            for state in &filter.states {
                states.push_bind(state.as_str());
            }
            query.push(")");
        }
        if let Some(name) = &filter.name {
            query.push(" AND name = ").push_bind(name.clone());
        }
        if let Some(template) = &filter.template {
            query.push(" AND (template = ").push_bind(template.clone());
            query.push(" OR template_digest = ").push_bind(template.clone()).push(")");
        }
        for (key, value) in &filter.labels {
            // A JSON path with a quoted key, because labels often contain dots and slashes. Keys with quotes are
            // refused on creation.
            query.push(" AND json_extract(record, ").push_bind(format!("$.draft.labels.\"{key}\""));
            query.push(") = ").push_bind(value.clone());
        }
        if let Some(pool) = &filter.pool {
            query.push(" AND pool = ").push_bind(pool.clone());
        }
        if let Some(job) = filter.job {
            // No vm has a job whose id does not fit into a column.
            let job = i64::try_from(job).unwrap_or(-1);
            query.push(" AND id IN (SELECT vm_id FROM vm_jobs WHERE job_id = ").push_bind(job).push(")");
        }
        if let Some(before) = filter.before {
            query.push(" AND id < ").push_bind(before.to_string());
        }
        query.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(filter.limit));
        query.build().fetch_all(&self.pool).await?.iter().map(|row| parse_vm(&row.try_get::<String, _>(0)?)).collect()
    }

    /// All vms that have not reached their end, oldest first: a start has to continue them.
    pub async fn live_vms(&self) -> Result<Vec<Vm>> {
        sqlx::query!("SELECT record FROM vms WHERE deleted_at IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| parse_vm(&row.record))
            .collect()
    }

    /// 1 for the vm that is next.
    pub async fn queue_position(&self, id: VmId) -> Result<i64> {
        let id = id.to_string();
        let row = sqlx::query!(r#"SELECT COUNT(*) AS "n!: i64" FROM vms WHERE state = 'queued' AND id <= ?"#, id)
            .fetch_one(&self.pool)
            .await?;
        Ok(row.n)
    }

    pub async fn queue_length(&self) -> Result<i64> {
        let row = sqlx::query!(r#"SELECT COUNT(*) AS "n!: i64" FROM vms WHERE state = 'queued'"#)
            .fetch_one(&self.pool)
            .await?;
        Ok(row.n)
    }

    /// The drivers that queued vms wait for.
    pub async fn drivers_waited_for(&self) -> Result<Vec<String>> {
        let rows = sqlx::query!(
            r#"SELECT DISTINCT driver AS "driver!: String" FROM vms WHERE state = 'queued' AND driver IS NOT NULL"#
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| row.driver).collect())
    }

    /// When the next vm that waits after a failed attempt may be tried again.
    pub async fn next_not_before(&self, now: jiff::Timestamp) -> Result<Option<jiff::Timestamp>> {
        let now = now.as_millisecond();
        let row = sqlx::query!(
            r#"SELECT MIN(not_before) AS "at: i64" FROM vms WHERE state = 'queued' AND not_before > ?"#,
            now
        )
        .fetch_one(&self.pool)
        .await?;
        row.at
            .map(|at| jiff::Timestamp::from_millisecond(at).map_err(|e| unreadable(format!("a time: {e}"))))
            .transpose()
    }

    pub async fn count_by_state(&self) -> Result<HashMap<State, i64>> {
        // There are many deleted rows, and their number is not needed.
        sqlx::query!(r#"SELECT state, COUNT(*) AS "n!: i64" FROM vms WHERE deleted_at IS NULL GROUP BY state"#)
            .fetch_all(&self.pool)
            .await?
            .into_iter()
            .map(|row| {
                let state = State::parse(&row.state).ok_or_else(|| unreadable(format!("state {:?}", row.state)))?;
                Ok((state, row.n))
            })
            .collect()
    }

    pub async fn queue_by_reason(&self) -> Result<HashMap<QueueReason, i64>> {
        sqlx::query!(
            r#"SELECT json_extract(record, '$.queue.reason') AS "reason!: String", COUNT(*) AS "n!: i64"
               FROM vms WHERE state = 'queued' GROUP BY 1"#
        )
        .fetch_all(&self.pool)
        .await?
        .into_iter()
        .map(|row| {
            let reason = QueueReason::ALL.iter().copied().find(|r| r.as_str() == row.reason);
            Ok((reason.ok_or_else(|| unreadable(format!("queue reason {:?}", row.reason)))?, row.n))
        })
        .collect()
    }

    /// Usage of our own vms.
    pub async fn leased(&self) -> Result<Usage> {
        let mut held = Usage::default();
        for vm in self.live_vms().await?.iter().filter(|vm| vm.state.holds_slot()) {
            if let Some(spec) = vm.spec.resolved() {
                held.add(spec.os, spec.cpus, spec.memory_mib);
            }
        }
        Ok(held)
    }

    pub async fn leases(&self) -> Result<Vec<VmId>> {
        sqlx::query!("SELECT vm_id FROM leases ORDER BY vm_id")
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(|row| parse_id(&row.vm_id))
            .collect()
    }

    pub async fn template_in_use(&self, digest: &str) -> Result<Option<VmId>> {
        let row = sqlx::query!("SELECT id FROM vms WHERE template_digest = ? AND deleted_at IS NULL LIMIT 1", digest)
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| parse_id(&row.id)).transpose()
    }

    /// Events of vms after a position, oldest first; of one vm or of all.
    pub async fn events(&self, vm: Option<VmId>, after: i64, limit: u32) -> Result<Vec<Recorded>> {
        let of = match vm {
            Some(_) => "vm_id = ? AND seq > ? ORDER BY generation",
            None => "vm_id IS NOT ? AND seq > ? ORDER BY seq",
        };
        sqlx::query(AssertSqlSafe(format!("SELECT {VM_EVENT_COLUMNS} FROM events WHERE {of} LIMIT ?")))
            .bind(vm.map(|id| id.to_string()))
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?
            .iter()
            .map(vm_event)
            .collect()
    }

    /// The position of the newest event.
    pub async fn last_seq(&self) -> Result<i64> {
        let row =
            sqlx::query!(r#"SELECT COALESCE(MAX(seq), 0) AS "seq!: i64" FROM events"#).fetch_one(&self.pool).await?;
        Ok(row.seq)
    }

    /// Secrets for the guest, still encrypted.
    pub async fn sealed(&self, id: VmId) -> Result<Option<Vec<u8>>> {
        let id = id.to_string();
        let row = sqlx::query!("SELECT sealed FROM vm_secrets WHERE vm_id = ?", id).fetch_optional(&self.pool).await?;
        Ok(row.map(|row| row.sealed))
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        sqlx::query!(r#"SELECT 1 AS "one!: i64""#).fetch_one(&self.pool).await?;
        Ok(())
    }
}

pub(super) const VM_EVENT_COLUMNS: &str = "seq, vm_id, generation, at, state, event";

pub(super) fn vm_event(row: &SqliteRow) -> Result<Recorded> {
    let state: String = row.try_get("state")?;
    let event: String = row.try_get("event")?;
    let at: i64 = row.try_get("at")?;
    let id: String = row.try_get("vm_id")?;
    Ok(Recorded {
        seq: row.try_get("seq")?,
        vm_id: parse_id(&id)?,
        generation: row.try_get("generation")?,
        at: jiff::Timestamp::from_millisecond(at).map_err(|e| unreadable(format!("a time: {e}")))?,
        state: State::parse(&state).ok_or_else(|| unreadable(format!("state {state:?}")))?,
        event: serde_json::from_str::<Event>(&event).map_err(|e| unreadable(format!("an event: {e}")))?,
    })
}
