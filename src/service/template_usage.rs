//! Before the catalog removes a version, reports which versions are used by vms. Records each removal.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::{
    domain::{Result, TemplateEvent, version::VersionUsage},
    platform::Clock,
    store::{Ledger, Reader},
    templates::TemplateUsage,
};

pub struct StoredTemplateUsage {
    pub reader: Reader,
    pub ledger: Ledger,
    pub clock: Clock,
}

#[async_trait]
impl TemplateUsage for StoredTemplateUsage {
    async fn needed(&self) -> Result<BTreeSet<String>> {
        let live = self.reader.live_vms().await?;
        let mut needed: BTreeSet<String> =
            live.into_iter().filter_map(|vm| Some(vm.spec.resolved()?.template_digest.clone())).collect();
        needed.extend(self.reader.digests_in_test().await?);
        Ok(needed)
    }

    async fn pulling(&self) -> Result<BTreeSet<String>> {
        Ok(self.reader.live_pulls().await?.into_iter().filter_map(|pull| pull.image_digest).collect())
    }

    async fn needs(&self, digest: &str) -> Result<bool> {
        Ok(self.reader.template_in_use(digest).await?.is_some()
            || self.reader.digests_in_test().await?.iter().any(|tested| tested == digest))
    }

    async fn pruned(&self, held: &VersionUsage) {
        tracing::info!(template.digest = held.digest, bytes = held.bytes, why = held.why, "template version pruned");
        metrics::counter!("mayfly_template_pruned_bytes_total").increment(held.bytes);
        let VersionUsage { digest, bytes, why, .. } = held.clone();
        let event = TemplateEvent::Pruned { digest, bytes, why };
        if let Err(error) = self.ledger.record_template(&held.digest, event, self.clock.now()).await {
            // The version is removed in any case, so a failure to record it must not fail the operation that needs
            // the space.
            tracing::error!(template.digest = held.digest, %error, "cannot record that a template was pruned");
        }
    }
}
