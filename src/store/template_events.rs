//! Events of templates: in the same table, sequence and stream as those of vms.

use std::sync::Arc;

use jiff::Timestamp;
use sqlx::{AssertSqlSafe, Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    Ledger, Reader, Result,
    rows::unreadable,
    vm_queries::{VM_EVENT_COLUMNS, vm_event},
};
use crate::domain::{
    event::Recorded,
    template_event::{RecordedOfTemplate, TemplateEvent},
};

/// One entry of the ledger, about a vm or a template.
#[derive(Clone, Debug, PartialEq)]
pub enum Entry {
    Vm(Recorded),
    Template(RecordedOfTemplate),
}

impl Entry {
    pub fn seq(&self) -> i64 {
        match self {
            Entry::Vm(recorded) => recorded.seq,
            Entry::Template(recorded) => recorded.seq,
        }
    }
}

impl Ledger {
    /// Records an event of a template, under its name, or under its digest if it has no name. Returns the event's
    /// position.
    pub async fn record_template(
        &self,
        template: impl Into<String>,
        event: TemplateEvent,
        at: Timestamp,
    ) -> Result<i64> {
        let template = template.into();
        let changes = self.changes().clone();
        self.writer
            .write_and_tell(
                move |db| Box::pin(async move { insert(db, &template, event, at).await }),
                move |made: &Arc<RecordedOfTemplate>| changes.publish_template(made),
            )
            .await
            .map(|made| made.seq)
    }
}

/// For writes that change more than the log. The caller publishes the event after the commit.
pub(super) async fn insert(
    db: &mut SqliteConnection,
    template: &str,
    event: TemplateEvent,
    at: Timestamp,
) -> Result<Arc<RecordedOfTemplate>> {
    let json = serde_json::to_string(&event).map_err(|e| unreadable(e.to_string()))?;
    let millis = at.as_millisecond();
    let seq = sqlx::query!("INSERT INTO events (template, at, event) VALUES (?, ?, ?)", template, millis, json)
        .execute(&mut *db)
        .await?
        .last_insert_rowid();
    Ok(Arc::new(RecordedOfTemplate { seq, template: template.to_owned(), at, event }))
}

impl Reader {
    /// Events of vms and templates after a position, oldest first.
    pub async fn entries(&self, after: i64, limit: u32) -> Result<Vec<Entry>> {
        let columns = format!("SELECT {VM_EVENT_COLUMNS}, template FROM events WHERE seq > ? ORDER BY seq LIMIT ?");
        sqlx::query(AssertSqlSafe(columns))
            .bind(after)
            .bind(i64::from(limit))
            .fetch_all(self.pool())
            .await?
            .iter()
            .map(|row| match row.try_get::<Option<String>, _>("template")? {
                Some(template) => template_event(row, template).map(Entry::Template),
                None => vm_event(row).map(Entry::Vm),
            })
            .collect()
    }

    /// Events of a template after a position, oldest first: those under any of these keys, its name and its digest.
    pub async fn template_events(&self, of: [&str; 2], after: i64, limit: u32) -> Result<Vec<RecordedOfTemplate>> {
        sqlx::query(
            "SELECT seq, template, at, event FROM events WHERE template IN (?, ?) AND seq > ? ORDER BY seq LIMIT ?",
        )
        .bind(of[0])
        .bind(of[1])
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(self.pool())
        .await?
        .iter()
        .map(|row| template_event(row, row.try_get("template")?))
        .collect()
    }
}

fn template_event(row: &SqliteRow, template: String) -> Result<RecordedOfTemplate> {
    let event: String = row.try_get("event")?;
    let at: i64 = row.try_get("at")?;
    Ok(RecordedOfTemplate {
        seq: row.try_get("seq")?,
        template,
        at: Timestamp::from_millisecond(at).map_err(|e| unreadable(format!("a time: {e}")))?,
        event: serde_json::from_str(&event).map_err(|e| unreadable(format!("an event: {e}")))?,
    })
}

#[cfg(test)]
#[path = "template_events_tests.rs"]
mod tests;
