//! Forgetting: records of vms that ended long ago.

use jiff::Timestamp;

use super::{Ledger, Result};

/// One bounded bite, so that other writes never wait long behind it.
const BITE: i64 = 200;

impl Ledger {
    /// Removes records (rows, events, idempotency keys) of vms deleted before `cutoff`; returns how many, 0 when there are none left.
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
                    Ok(gone.rows_affected())
                })
            })
            .await
    }
}
