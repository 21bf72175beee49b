//! Pulls: one row each; an update is written only if the row has not changed since it was read.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use sqlx::{Row as _, SqliteConnection};

use super::{Ledger, Reader, Result, rows::unreadable, template_events};
use crate::{
    domain::{
        Code, Error, PullId, TemplateEvent,
        pull::{Pull, PullState},
        template_event::RecordedOfTemplate,
    },
    platform::database::DatabaseHealth,
};

/// A change of a pull, and its events of templates.
type PullChange = (Option<Arc<Pull>>, Vec<Arc<RecordedOfTemplate>>);

impl Ledger {
    /// Stores a new pull, or finds the unfinished one of an equal request. Returns whether it is new.
    pub async fn open_pull(&self, pull: Pull, request_hash: [u8; 32]) -> Result<(Arc<Pull>, bool)> {
        let (changes, health) = (self.changes().clone(), self.health().clone());
        let tell = move |(pull, made): &(Arc<Pull>, Option<Arc<RecordedOfTemplate>>)| {
            if let Some(event) = made {
                changes.publish_template(event);
                changes.publish_pull(pull);
            }
        };
        let (pull, made) = self
            .writer
            .write_and_tell(move |db| Box::pin(async move { open(db, pull, request_hash, &health).await }), tell)
            .await?;
        Ok((pull, made.is_some()))
    }

    /// Replaces a pull by its new state, with the events. `None`: it has changed since it was read, and nothing was
    /// written.
    pub async fn save_pull(
        &self,
        pull: Pull,
        events: Vec<(String, TemplateEvent)>,
        at: Timestamp,
    ) -> Result<Option<Arc<Pull>>> {
        let changes = self.changes().clone();
        let tell = move |(pull, made): &PullChange| {
            for event in made {
                changes.publish_template(event);
            }
            if let Some(pull) = pull {
                changes.publish_pull(pull);
            }
        };
        self.writer
            .write_and_tell(move |db| Box::pin(async move { save(db, pull, events, at).await }), tell)
            .await
            .map(|(pull, _)| pull)
    }
}

async fn open(
    db: &mut SqliteConnection,
    pull: Pull,
    request_hash: [u8; 32],
    health: &DatabaseHealth,
) -> Result<(Arc<Pull>, Option<Arc<RecordedOfTemplate>>)> {
    let hash = request_hash.as_slice();
    let same = sqlx::query!("SELECT record FROM pulls WHERE request_hash = ? AND ended_at IS NULL", hash)
        .fetch_optional(&mut *db)
        .await?;
    if let Some(same) = same {
        return Ok((Arc::new(parse(&same.record)?), None));
    }
    if let Some(fault) = health.space_fault() {
        return Err(fault.into());
    }
    let id = pull.id.to_string();
    let state = pull.state.as_str();
    let created_at = pull.created_at.as_millisecond();
    let json = serde_json::to_string(&pull).map_err(|e| unreadable(e.to_string()))?;
    sqlx::query!(
        "INSERT INTO pulls (id, state, generation, request_hash, created_at, record) VALUES (?, ?, ?, ?, ?, ?)",
        id,
        state,
        pull.generation,
        hash,
        created_at,
        json
    )
    .execute(&mut *db)
    .await?;
    let event = TemplateEvent::PullStarted { pull: pull.id, image: pull.spec.image.clone() };
    let made = template_events::insert(db, &pull.spec.name, event, pull.created_at).await?;
    Ok((Arc::new(pull), Some(made)))
}

async fn save(
    db: &mut SqliteConnection,
    mut pull: Pull,
    events: Vec<(String, TemplateEvent)>,
    at: Timestamp,
) -> Result<PullChange> {
    let before = pull.generation;
    pull.generation += 1;
    pull.updated_at = at.max(pull.updated_at);
    let id = pull.id.to_string();
    let state = pull.state.as_str();
    let ended_at = pull.ended_at.map(|t| t.as_millisecond());
    let json = serde_json::to_string(&pull).map_err(|e| unreadable(e.to_string()))?;
    let changed = sqlx::query!(
        "UPDATE pulls SET state = ?, generation = ?, ended_at = ?, record = ? WHERE id = ? AND generation = ?",
        state,
        pull.generation,
        ended_at,
        json,
        id,
        before
    )
    .execute(&mut *db)
    .await?;
    if changed.rows_affected() == 0 {
        return Ok((None, Vec::new()));
    }
    let mut made = Vec::new();
    for (template, event) in events {
        made.push(template_events::insert(db, &template, event, at).await?);
    }
    Ok((Some(Arc::new(pull)), made))
}

/// Moves the deadlines of unfinished pulls by a step of the clock. Their generation grows, so that their tasks do not
/// write the earlier times again.
pub(super) async fn step_clock(db: &mut SqliteConnection, by: SignedDuration) -> Result<Vec<Arc<Pull>>> {
    let rows = sqlx::query("SELECT record FROM pulls WHERE ended_at IS NULL ORDER BY id").fetch_all(&mut *db).await?;
    let mut moved = Vec::new();
    for row in rows {
        let mut pull = parse(&row.try_get::<String, _>(0)?)?;
        pull.generation += 1;
        pull.deadline = pull.deadline.saturating_add(by).unwrap_or(pull.deadline);
        pull.retry_at = pull.retry_at.map(|at| at.saturating_add(by).unwrap_or(at));
        let json = serde_json::to_string(&pull).map_err(|e| unreadable(e.to_string()))?;
        sqlx::query("UPDATE pulls SET generation = ?, record = ? WHERE id = ?")
            .bind(pull.generation)
            .bind(json)
            .bind(pull.id.to_string())
            .execute(&mut *db)
            .await?;
        moved.push(Arc::new(pull));
    }
    Ok(moved)
}

fn parse(record: &str) -> Result<Pull> {
    serde_json::from_str(record).map_err(|e| unreadable(format!("a pull's record: {e}")))
}

pub fn no_pull(id: PullId) -> Error {
    Error::new(Code::PullNotFound, format!("no pull has the id {id}"))
}

impl Reader {
    pub async fn pull(&self, id: PullId) -> Result<Option<Pull>> {
        let id = id.to_string();
        let row = sqlx::query!("SELECT record FROM pulls WHERE id = ?", id).fetch_optional(self.pool()).await?;
        row.map(|row| parse(&row.record)).transpose()
    }

    /// Newest first; only those older than `before`.
    pub async fn pulls(&self, before: Option<PullId>, limit: u32) -> Result<Vec<Pull>> {
        // Ids are hexadecimal, so all of them are smaller than this.
        let before = before.map_or_else(|| "g".to_owned(), |id| id.to_string());
        let limit = i64::from(limit);
        sqlx::query!("SELECT record FROM pulls WHERE id < ? ORDER BY id DESC LIMIT ?", before, limit)
            .fetch_all(self.pool())
            .await?
            .iter()
            .map(|row| parse(&row.record))
            .collect()
    }

    /// The unfinished ones, oldest first: a start has to continue them.
    pub async fn live_pulls(&self) -> Result<Vec<Pull>> {
        sqlx::query!("SELECT record FROM pulls WHERE ended_at IS NULL ORDER BY id")
            .fetch_all(self.pool())
            .await?
            .iter()
            .map(|row| parse(&row.record))
            .collect()
    }

    /// Templates without a name, because their test is under way.
    pub async fn digests_in_test(&self) -> Result<Vec<String>> {
        let live = self.live_pulls().await?;
        Ok(live.into_iter().filter(|pull| pull.state == PullState::Testing).filter_map(|pull| pull.digest).collect())
    }
}

#[cfg(test)]
#[path = "pulls_tests.rs"]
mod tests;
