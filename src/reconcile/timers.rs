//! Retention: records and logs of vms that ended long ago, and versions of templates that nothing needs.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;

use super::Reconciler;

const EVERY: Duration = Duration::from_secs(3600);

impl Reconciler {
    pub(super) async fn retain_forever(self: Arc<Self>) {
        loop {
            if let Err(error) = self.retain().await {
                tracing::error!(error = %error, "old records could not be removed");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn retain(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let keep = SignedDuration::try_from(self.settings.keep_deleted)?;
        let cutoff = self.clock.now() - keep;
        let mut forgotten = 0;
        loop {
            let bite = self.ledger.forget_deleted_before(cutoff).await?;
            if bite == 0 {
                break;
            }
            forgotten += bite;
            // Everybody else's writes come in between.
            tokio::task::yield_now().await;
        }
        for vm in self.logs.vms().await? {
            if self.reader.vm(vm).await?.is_none() {
                self.logs.remove(vm).await?;
            }
        }
        self.catalog.tidy().await?;
        if forgotten > 0 {
            tracing::info!(records = forgotten, "old records removed");
        }
        Ok(())
    }
}
