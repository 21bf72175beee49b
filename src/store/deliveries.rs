//! Webhook deliveries of sources of jobs: one row each.

use jiff::Timestamp;

use super::{Ledger, Reader, Result, rows::unreadable};
use crate::domain::{SourceName, job::DeliveryResult};

/// A delivery that was not processed yet.
#[derive(Clone, Debug)]
pub struct Pending {
    pub seq: i64,
    pub source: SourceName,
    pub guid: String,
    pub event: String,
    pub body: Vec<u8>,
}

/// A delivery as shown to callers.
#[derive(Clone, Debug)]
pub struct DeliveryRow {
    pub guid: String,
    pub event: String,
    pub action: Option<String>,
    pub received_at: Timestamp,
    pub result: DeliveryResult,
    pub detail: Option<String>,
    pub worked_at: Option<Timestamp>,
}

/// The stored part of a delivery. `body`: only if it has to be processed.
#[derive(Clone, Debug)]
pub struct NewDelivery {
    pub source: SourceName,
    pub guid: String,
    pub event: String,
    pub action: Option<String>,
    pub body: Option<Vec<u8>>,
    /// SHA-256 of the body.
    pub content: Option<[u8; 32]>,
    pub detail: Option<String>,
}

impl Ledger {
    /// `false`: a delivery of this source with this id or with the same content was stored before.
    pub async fn take_delivery(&self, new: NewDelivery, at: Timestamp) -> Result<bool> {
        let result = if new.body.is_some() { DeliveryResult::Pending } else { DeliveryResult::Ignored };
        let (result, at) = (result.as_str(), at.as_millisecond());
        let content = new.content.map(Vec::from);
        let source = String::from(new.source);
        let changes = self.changes().clone();
        if let Some(fault) = self.health().space_fault() {
            return Err(fault.into());
        }
        self.writer
            .write_and_tell(
                move |db| {
                    Box::pin(async move {
                        let made = sqlx::query!(
                            "INSERT INTO webhook_deliveries
                                 (source, guid, event, action, received_at, result, detail, body, content)
                             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                            source,
                            new.guid,
                            new.event,
                            new.action,
                            at,
                            result,
                            new.detail,
                            new.body,
                            content
                        )
                        .execute(&mut *db)
                        .await?;
                        Ok(made.rows_affected() > 0)
                    })
                },
                move |new: &bool| {
                    if *new {
                        changes.signal_delivery();
                    }
                },
            )
            .await
    }

    pub async fn delivery_worked(
        &self,
        seq: i64,
        result: DeliveryResult,
        detail: Option<String>,
        at: Timestamp,
    ) -> Result<()> {
        let (result, at) = (result.as_str(), at.as_millisecond());
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    sqlx::query!(
                        "UPDATE webhook_deliveries SET result = ?, detail = ?, worked_at = ?, body = NULL WHERE seq = ?",
                        result,
                        detail,
                        at,
                        seq
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    /// Deletes deliveries that were processed before this time.
    pub async fn forget_deliveries(&self, before: Timestamp) -> Result<u64> {
        let before = before.as_millisecond();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let gone = sqlx::query!(
                        "DELETE FROM webhook_deliveries WHERE received_at < ? AND result <> 'pending'",
                        before
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok(gone.rows_affected())
                })
            })
            .await
    }
}

impl Reader {
    /// In the order in which they arrived.
    pub async fn pending_deliveries(&self, limit: u32) -> Result<Vec<Pending>> {
        let rows = sqlx::query!(
            r#"SELECT seq, source, guid, event, body AS "body!: Vec<u8>" FROM webhook_deliveries
               WHERE result = 'pending' ORDER BY seq LIMIT ?"#,
            limit
        )
        .fetch_all(self.pool())
        .await?;
        rows.into_iter()
            .map(|row| {
                let source = SourceName::new(&row.source).map_err(unreadable)?;
                Ok(Pending { seq: row.seq, source, guid: row.guid, event: row.event, body: row.body })
            })
            .collect()
    }

    /// Newest first.
    pub async fn deliveries(&self, source: &SourceName, limit: u32) -> Result<Vec<DeliveryRow>> {
        let source = source.as_str();
        let time = |at| Timestamp::from_millisecond(at).map_err(|e| unreadable(format!("a time: {e}")));
        sqlx::query!(
            "SELECT guid, event, action, received_at, result, detail, worked_at FROM webhook_deliveries
             WHERE source = ? ORDER BY seq DESC LIMIT ?",
            source,
            limit
        )
        .fetch_all(self.pool())
        .await?
        .into_iter()
        .map(|row| {
            Ok(DeliveryRow {
                guid: row.guid,
                event: row.event,
                action: row.action,
                received_at: time(row.received_at)?,
                result: DeliveryResult::parse(&row.result)
                    .ok_or_else(|| unreadable(format!("a delivery's result {:?}", row.result)))?,
                detail: row.detail,
                worked_at: row.worked_at.map(time).transpose()?,
            })
        })
        .collect()
    }

    pub async fn knows_delivery(&self, source: &SourceName, guid: &str) -> Result<bool> {
        let source = source.as_str();
        let row = sqlx::query!(
            r#"SELECT 1 AS "one!: i64" FROM webhook_deliveries WHERE source = ? AND guid = ?"#,
            source,
            guid
        )
        .fetch_optional(self.pool())
        .await?;
        Ok(row.is_some())
    }

    /// When the newest delivery of this source arrived.
    pub async fn newest_delivery(&self, source: &SourceName) -> Result<Option<Timestamp>> {
        let source = source.as_str();
        let row =
            sqlx::query!(r#"SELECT MAX(received_at) AS "at: i64" FROM webhook_deliveries WHERE source = ?"#, source)
                .fetch_one(self.pool())
                .await?;
        row.at.map(|at| Timestamp::from_millisecond(at).map_err(|e| unreadable(format!("a time: {e}")))).transpose()
    }
}
