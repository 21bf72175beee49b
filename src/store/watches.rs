//! Watches of tags: one row each.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use sqlx::{Row as _, SqliteConnection};

use super::{Ledger, Reader, Result, rows::unreadable, template_events};
use crate::domain::{TemplateEvent, pull::Watch, template_event::RecordedOfTemplate};

impl Ledger {
    /// Replaces the template's watch, if it has one.
    pub async fn put_watch(&self, watch: Watch, at: Timestamp) -> Result<()> {
        self.write_watch(true, move |db| Box::pin(async move { put(db, watch, at).await })).await.map(drop)
    }

    /// Returns whether it existed.
    pub async fn remove_watch(&self, template: &str, at: Timestamp) -> Result<bool> {
        let template = template.to_owned();
        self.write_watch(true, move |db| Box::pin(async move { remove(db, &template, at).await })).await
    }

    /// Replaces a watch by its state after a look, with the event. `false`: it was changed or removed meanwhile, and
    /// nothing was written.
    pub async fn save_watch(
        &self,
        before: &Watch,
        after: Watch,
        event: Option<TemplateEvent>,
        at: Timestamp,
    ) -> Result<bool> {
        let before = json(before)?;
        self.write_watch(false, move |db| Box::pin(async move { save(db, &before, after, event, at).await })).await
    }

    /// Returns whether something was changed. `signal`: the loop that looks at tags has to read its watches again.
    async fn write_watch<F>(&self, signal: bool, work: F) -> Result<bool>
    where
        F: for<'c> FnOnce(&'c mut SqliteConnection) -> BoxFuture<'c, Result<WatchChange>> + Send + 'static,
    {
        let changes = self.changes().clone();
        let tell = move |(changed, event): &WatchChange| {
            if let Some(event) = event {
                changes.publish_template(event);
            }
            if signal && *changed {
                changes.signal_watches();
            }
        };
        self.writer.write_and_tell(work, tell).await.map(|(changed, _)| changed)
    }
}

/// Returns whether something was changed, and the event.
type WatchChange = (bool, Option<Arc<RecordedOfTemplate>>);

async fn put(db: &mut SqliteConnection, watch: Watch, at: Timestamp) -> Result<WatchChange> {
    let json = json(&watch)?;
    sqlx::query!(
        "INSERT INTO watches (template, record) VALUES (?1, ?2)
         ON CONFLICT (template) DO UPDATE SET record = excluded.record",
        watch.template,
        json
    )
    .execute(&mut *db)
    .await?;
    let event = TemplateEvent::WatchSet { image: watch.image, every_seconds: watch.every_seconds };
    let made = template_events::insert(db, &watch.template, event, at).await?;
    Ok((true, Some(made)))
}

async fn remove(db: &mut SqliteConnection, template: &str, at: Timestamp) -> Result<WatchChange> {
    let there =
        sqlx::query!("SELECT record FROM watches WHERE template = ?", template).fetch_optional(&mut *db).await?;
    let Some(there) = there else { return Ok((false, None)) };
    sqlx::query!("DELETE FROM watches WHERE template = ?", template).execute(&mut *db).await?;
    let event = TemplateEvent::WatchRemoved { image: parse(&there.record)?.image };
    let made = template_events::insert(db, template, event, at).await?;
    Ok((true, Some(made)))
}

async fn save(
    db: &mut SqliteConnection,
    before: &str,
    after: Watch,
    event: Option<TemplateEvent>,
    at: Timestamp,
) -> Result<WatchChange> {
    let json = json(&after)?;
    let changed =
        sqlx::query!("UPDATE watches SET record = ? WHERE template = ? AND record = ?", json, after.template, before)
            .execute(&mut *db)
            .await?;
    let changed = changed.rows_affected() > 0;
    let made = match event {
        Some(event) if changed => Some(template_events::insert(db, &after.template, event, at).await?),
        _ => None,
    };
    Ok((changed, made))
}

/// Moves the times of the next checks by a step of the clock.
pub(super) async fn step_clock(db: &mut SqliteConnection, by: SignedDuration) -> Result<()> {
    for row in sqlx::query("SELECT record FROM watches").fetch_all(&mut *db).await? {
        let mut watch = parse(&row.try_get::<String, _>(0)?)?;
        watch.next_look_at = watch.next_look_at.saturating_add(by).unwrap_or(watch.next_look_at);
        let json = json(&watch)?;
        sqlx::query("UPDATE watches SET record = ? WHERE template = ?")
            .bind(json)
            .bind(watch.template)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

fn json(watch: &Watch) -> Result<String> {
    serde_json::to_string(watch).map_err(|e| unreadable(e.to_string()))
}

fn parse(record: &str) -> Result<Watch> {
    serde_json::from_str(record).map_err(|e| unreadable(format!("a watch's record: {e}")))
}

impl Reader {
    pub async fn watch(&self, template: &str) -> Result<Option<Watch>> {
        let row =
            sqlx::query!("SELECT record FROM watches WHERE template = ?", template).fetch_optional(self.pool()).await?;
        row.map(|row| parse(&row.record)).transpose()
    }

    pub async fn watches(&self) -> Result<Vec<Watch>> {
        sqlx::query!("SELECT record FROM watches ORDER BY template")
            .fetch_all(self.pool())
            .await?
            .iter()
            .map(|row| parse(&row.record))
            .collect()
    }
}
