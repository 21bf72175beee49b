//! Reads vms, their events, the queue and leases.

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use sqlx::{AssertSqlSafe, QueryBuilder, Row, Sqlite, sqlite::SqliteRow};

use super::{
    Result,
    rows::{parse_id, parse_vm, unreadable},
};
use crate::{
    domain::{Event, OutcomeResult, QueueReason, State, Vm, VmId, capacity::Usage, event::Recorded},
    platform::database::ReadPool,
};

/// Filter of a listing.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Empty: every state but `deleted`; with a job or an outcome, every state.
    pub states: Vec<State>,
    pub name: Option<String>,
    /// The beginning of an id, in lower case.
    pub id_prefix: Option<String>,
    pub name_prefix: Option<String>,
    pub outcome: Option<OutcomeResult>,
    /// Name or digest.
    pub template: Option<String>,
    pub labels: Vec<(String, String)>,
    pub pool: Option<String>,
    /// Id of a job that the vm was given.
    pub job: Option<String>,
    pub created_since: Option<Timestamp>,
    /// Only vms older than this one.
    pub before: Option<VmId>,
    pub limit: u32,
}

impl Filter {
    /// The records, newest first. Every variant reads vms in the order of the list from an index, so that the limit
    /// ends it and no vm is read that another filter excludes.
    fn query(&self) -> QueryBuilder<Sqlite> {
        let live_only = match self.states.is_empty() {
            // A query by job or by outcome is usually made after the vm has ended.
            true => self.job.is_none() && self.outcome.is_none(),
            false => !self.states.contains(&State::Deleted),
        };
        // Among all vms, a label may be rarer than anything else. SQLite has no statistics to find out, so CROSS JOIN
        // gives the order. Live vms are few.
        let by_label = !live_only && self.name.is_none() && self.id_prefix.is_none() && self.job.is_none();
        let (first, other_labels) = match self.labels.split_first() {
            Some((first, others)) if by_label => (Some(first), others),
            _ => (None, &*self.labels),
        };
        let (from, id) = match first {
            Some(_) => ("vm_labels AS found CROSS JOIN vms ON vms.id = found.vm_id", "found.vm_id"),
            None => ("vms", "vms.id"),
        };
        let mut query = QueryBuilder::<Sqlite>::new(format!("SELECT record FROM {from} WHERE "));
        query.push(if live_only { "deleted_at IS NULL" } else { "TRUE" });
        if let Some((key, value)) = first {
            query.push(" AND found.key = ").push_bind(key.clone());
            query.push(" AND found.value = ").push_bind(value.clone());
        }
        if !self.states.is_empty() {
            query.push(" AND state IN (");
            let mut states = query.separated(", ");
            for state in &self.states {
                states.push_bind(state.as_str());
            }
            query.push(")");
        }
        if let Some(name) = &self.name {
            query.push(" AND name = ").push_bind(name.clone());
        }
        if let Some(prefix) = &self.id_prefix {
            // Ids consist of hexadecimal digits and dashes.
            query.push(format!(" AND {id} >= ")).push_bind(prefix.clone());
            query.push(format!(" AND {id} < ")).push_bind(format!("{prefix}g"));
        }
        if let Some(prefix) = &self.name_prefix {
            // Not by the index of names (`+`): vms of one scheduler share a prefix, and they would have to be sorted.
            query.push(" AND +name >= ").push_bind(prefix.clone());
            query.push(" AND +name < ").push_bind(format!("{prefix}{}", char::MAX));
        }
        if let Some(outcome) = self.outcome {
            query.push(" AND outcome = ").push_bind(outcome.as_str());
        }
        if let Some(template) = &self.template {
            // A name has no colon.
            let column = if template.contains(':') { "template_digest" } else { "template" };
            query.push(format!(" AND {column} = ")).push_bind(template.clone());
        }
        for (key, value) in other_labels {
            query
                .push(" AND EXISTS (SELECT TRUE FROM vm_labels WHERE vm_id = vms.id AND key = ")
                .push_bind(key.clone());
            query.push(" AND value = ").push_bind(value.clone()).push(")");
        }
        if let Some(pool) = &self.pool {
            query.push(" AND pool = ").push_bind(pool.clone());
        }
        if let Some(job) = &self.job {
            query.push(" AND vms.id IN (SELECT vm_id FROM vm_jobs WHERE job_id = ").push_bind(job.clone()).push(")");
        }
        if let Some(since) = self.created_since {
            // Ids begin with the system's time, so that the index ends the search. The service's clock may differ from that one
            // at the moment at which it was set.
            query
                .push(format!(" AND {id} >= "))
                .push_bind(first_id(since.saturating_sub(CLOCKS_DIFFER).unwrap_or(since)));
            query.push(" AND vms.created_at >= ").push_bind(since.as_millisecond());
        }
        if let Some(before) = self.before {
            query.push(format!(" AND {id} < ")).push_bind(before.to_string());
        }
        query.push(format!(" ORDER BY {id} DESC LIMIT ")).push_bind(i64::from(self.limit));
        query
    }
}

const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_hours(1);

/// Below the ids that are minted from this time on.
fn first_id(at: Timestamp) -> String {
    let millis = at.as_millisecond().max(0);
    format!("{:08x}-{:04x}", millis >> 16, millis & 0xffff)
}

/// Read-only access to the last commit.
#[derive(Clone)]
pub struct Reader {
    pub(super) pool: ReadPool,
}

/// Where a vm is in the queue, and what else it may wait for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueuePlace {
    /// 1 for the vm that is next.
    pub position: i64,
    /// How many slots are held by failed vms that are kept for debugging.
    pub kept_slots: i64,
}

impl Reader {
    pub(super) fn new(pool: ReadPool) -> Self {
        Self { pool }
    }

    pub(super) fn pool(&self) -> &ReadPool {
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
        let mut query = filter.query();
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

    /// For a queued vm. Kept slots are counted whatever it waits for.
    pub async fn queue_place(&self, id: VmId) -> Result<QueuePlace> {
        let id = id.to_string();
        // CROSS JOIN makes SQLite read the leases first. There are only as many as slots; there may be many thousand vms.
        let row = sqlx::query!(
            r#"SELECT
                   (SELECT COUNT(*) FROM vms WHERE state = 'queued' AND id <= ?) AS "position!: i64",
                   (SELECT COUNT(*) FROM leases CROSS JOIN vms ON vms.id = vm_id WHERE state = 'kept') AS "kept_slots!: i64""#,
            id
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(QueuePlace { position: row.position, kept_slots: row.kept_slots })
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

#[cfg(test)]
mod tests {
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;

    async fn plan(filter: &Filter) -> Vec<String> {
        let mut db = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        crate::store::schema::MIGRATIONS.run(&mut db).await.unwrap();
        let sql = format!("EXPLAIN QUERY PLAN {}", filter.query().sql().as_str());
        let rows = sqlx::query(AssertSqlSafe(sql)).fetch_all(&mut db).await.unwrap();
        rows.iter().map(|row| row.get("detail")).collect()
    }

    #[tokio::test]
    async fn every_list_is_read_in_its_order_and_from_an_index_that_fits() {
        let all = Filter { states: State::ALL.to_vec(), limit: 1, ..Filter::default() };
        let label = vec![("owner".to_owned(), "garm".to_owned())];
        let two = [label.clone(), vec![("a".to_owned(), "b".to_owned())]].concat();
        let text = |text: &str| Some(text.to_owned());
        let cases = [
            (Filter { limit: 1, ..Filter::default() }, "SCAN vms USING INDEX vms_live"),
            (Filter { labels: label.clone(), limit: 1, ..Filter::default() }, "SCAN vms USING INDEX vms_live"),
            (
                Filter { states: vec![State::Running], labels: label.clone(), ..all.clone() },
                "SCAN vms USING INDEX vms_live",
            ),
            (all.clone(), "SCAN vms USING INDEX sqlite_autoindex_vms_1"),
            (Filter { labels: label.clone(), ..all.clone() }, "SEARCH found USING COVERING INDEX vm_labels_value"),
            (Filter { labels: two, ..all.clone() }, "SEARCH found USING COVERING INDEX vm_labels_value"),
            (Filter { name: text("n"), ..all.clone() }, "SEARCH vms USING INDEX vms_name"),
            (Filter { name: text("n"), labels: label, ..all.clone() }, "SEARCH vms USING INDEX vms_name"),
            (Filter { template: text("t"), ..all.clone() }, "SEARCH vms USING INDEX vms_template "),
            (Filter { template: text("sha256:0"), ..all.clone() }, "SEARCH vms USING INDEX vms_template_digest"),
            (Filter { pool: text("p"), ..all.clone() }, "SEARCH vms USING INDEX vms_pool"),
            (Filter { outcome: Some(OutcomeResult::Failed), ..all.clone() }, "SEARCH vms USING INDEX vms_outcome"),
            (Filter { name_prefix: text("n"), ..all.clone() }, "SCAN vms USING INDEX sqlite_autoindex_vms_1"),
            (Filter { name_prefix: text("n"), limit: 1, ..Filter::default() }, "SCAN vms USING INDEX vms_live"),
            (
                Filter { created_since: Some(Timestamp::UNIX_EPOCH), ..all.clone() },
                "SCAN vms USING INDEX sqlite_autoindex_vms_1 (id>?",
            ),
            (Filter { id_prefix: text("01"), ..all }, "SCAN vms USING INDEX sqlite_autoindex_vms_1 (id>? AND id<?)"),
        ];
        for (filter, first) in cases {
            for filter in [Filter { before: Some(VmId::mint()), ..filter.clone() }, filter] {
                let plan = plan(&filter).await;
                let indexed = plan[0].replacen("SEARCH vms USING INDEX vms_live", "SCAN vms USING INDEX vms_live", 1);
                let indexed = indexed.replacen("SEARCH vms USING INDEX sqlite", "SCAN vms USING INDEX sqlite", 1);
                assert!(indexed.starts_with(first), "{filter:?}: {plan:?}");
                assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{filter:?}: {plan:?}");
            }
        }
    }
}
