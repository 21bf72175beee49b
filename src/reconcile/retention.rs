//! Deletes old records: vms and logs that ended long ago, template versions that nothing needs, and old jobs and
//! webhooks.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;

use crate::{
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader, logs::Logs},
    templates::Catalog,
};

const EVERY: Duration = Duration::from_secs(3600);

#[derive(Clone)]
pub(super) struct Retention {
    ledger: Ledger,
    reader: Reader,
    logs: Logs,
    catalog: Arc<Catalog>,
    clock: Clock,
    keep_deleted: Duration,
}

impl Retention {
    pub fn new(parts: &Parts, keep_deleted: Duration) -> Self {
        let Parts { ledger, reader, logs, catalog, clock, .. } = parts.clone();
        Self { ledger, reader, logs, catalog, clock, keep_deleted }
    }

    pub async fn retain_forever(self) {
        loop {
            if let Err(error) = self.retain().await {
                tracing::error!(error = %error, "cannot remove old records");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn retain(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let keep = SignedDuration::try_from(self.keep_deleted)?;
        let cutoff = self.clock.now() - keep;
        let mut forgotten = 0;
        loop {
            let bite = self.ledger.forget_deleted_before(cutoff).await?;
            if bite == 0 {
                break;
            }
            forgotten += bite;
            // A pause between batches lets other writes in.
            tokio::task::yield_now().await;
        }
        for vm in self.logs.vms().await? {
            if self.reader.vm(vm).await?.is_none() {
                self.logs.remove(vm).await?;
            }
        }
        self.catalog.tidy().await?;
        if forgotten > 0 {
            tracing::info!(records = forgotten, "removed old records");
        }
        Ok(())
    }
}

/// For ended jobs, and for webhook deliveries.
#[derive(Clone)]
pub(super) struct JobRetention {
    ledger: Ledger,
    clock: Clock,
    keep: Duration,
}

impl JobRetention {
    pub fn new(parts: &Parts, keep: Duration) -> Self {
        let Parts { ledger, clock, .. } = parts.clone();
        Self { ledger, clock, keep }
    }

    pub async fn retain_forever(self) {
        loop {
            let keep = SignedDuration::try_from(self.keep).unwrap_or(SignedDuration::MAX);
            if let Ok(before) = self.clock.now().checked_sub(keep) {
                let result = async {
                    self.ledger.forget_jobs(before).await?;
                    self.ledger.forget_deliveries(before).await
                };
                if let Err(error) = result.await {
                    tracing::error!(error = %error, "cannot remove old jobs");
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }
}
