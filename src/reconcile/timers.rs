//! Retention: records and logs of vms that ended long ago.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

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
        let mut needed: BTreeSet<String> =
            self.reader.live_vms().await?.into_iter().map(|vm| vm.draft.template_digest).collect();
        needed.extend(self.reader.digests_in_test().await?);
        for digest in self.catalog.prune(needed).await? {
            tracing::info!(template.digest = %digest, "removed a template that has no name and no vm");
        }
        if forgotten > 0 {
            tracing::info!(records = forgotten, "old records removed");
        }
        Ok(())
    }
}
