//! Deletes the records of vms and pulls that ended long ago, and old events of templates.

use jiff::Timestamp;

use super::{Ledger, Result};

/// A bounded batch, so that other writes never wait long behind it.
const BITE: i64 = 200;

impl Ledger {
    /// Deletes records (rows, events, idempotency keys) of vms deleted and pulls ended before `cutoff`, and older
    /// events of templates; returns how many, 0 if there are none left.
    pub async fn forget_deleted_before(&self, cutoff: Timestamp) -> Result<u64> {
        let cutoff = cutoff.as_millisecond();
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let gone = sqlx::query!(
                        "DELETE FROM vms WHERE id IN (SELECT id FROM vms WHERE deleted_at < ? ORDER BY deleted_at LIMIT ?)",
                        cutoff,
                        BITE
                    )
                    .execute(&mut *db)
                    .await?;
                    let events = sqlx::query!(
                        "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE template IS NOT NULL AND at < ? ORDER BY at LIMIT ?)",
                        cutoff,
                        BITE
                    )
                    .execute(&mut *db)
                    .await?;
                    let pulls = sqlx::query!(
                        "DELETE FROM pulls WHERE id IN (SELECT id FROM pulls WHERE ended_at < ? ORDER BY ended_at LIMIT ?)",
                        cutoff,
                        BITE
                    )
                    .execute(&mut *db)
                    .await?;
                    Ok(gone.rows_affected() + events.rows_affected() + pulls.rows_affected())
                })
            })
            .await
    }
}
