//! Versions of templates: where names point, what is pinned, what is pruned, what is sound.

use std::collections::BTreeSet;

use async_trait::async_trait;

use super::Service;
use crate::{
    domain::{
        Code, Error, Result, Template, TemplateEvent,
        version::{Moved, PruneRequest, Pruned, Verified, VersionStatus, VersionUsage},
    },
    platform::Clock,
    store::{Ledger, Reader},
    templates::TemplateUsage,
};

/// What the catalog is told of the vms, and whom it tells what it pruned.
pub(super) struct Vms {
    pub reader: Reader,
    pub ledger: Ledger,
    pub clock: Clock,
}

#[async_trait]
impl TemplateUsage for Vms {
    async fn needed(&self) -> Result<BTreeSet<String>> {
        let live = self.reader.live_vms().await?;
        let mut needed: BTreeSet<String> =
            live.into_iter().filter_map(|vm| Some(vm.draft.spec()?.template_digest.clone())).collect();
        needed.extend(self.reader.digests_in_test().await?);
        Ok(needed)
    }

    async fn needs(&self, digest: &str) -> Result<bool> {
        Ok(self.reader.template_in_use(digest).await?.is_some()
            || self.reader.digests_in_test().await?.iter().any(|tested| tested == digest))
    }

    async fn pruned(&self, held: &VersionUsage) {
        tracing::info!(template.digest = held.digest, bytes = held.bytes, why = held.why, "pruned");
        metrics::counter!("mayfly_template_pruned_bytes_total").increment(held.bytes);
        let VersionUsage { digest, bytes, why, .. } = held.clone();
        let event = TemplateEvent::Pruned { digest, bytes, why };
        if let Err(error) = self.ledger.record_template(&held.digest, event, self.clock.now()).await {
            // It is gone all the same, and whoever waits for the room does not wait for this.
            tracing::error!(template.digest = held.digest, %error, "that it was pruned could not be written down");
        }
    }
}

/// A reason is one line in listings.
const LONGEST_WHY: usize = 200;

fn fits(why: &str) -> Result<()> {
    if why.chars().count() > LONGEST_WHY || why.chars().any(char::is_control) {
        return Err(Error::new(Code::RequestInvalid, "the reason is not usable")
            .field("/why", format!("must be one line of at most {LONGEST_WHY} characters")));
    }
    Ok(())
}

impl Service {
    /// A template with what is known of it beside its content.
    pub async fn template_with_standing(&self, name: &str) -> Result<(Template, VersionStatus)> {
        let template = self.catalog.get(name).await?;
        let standing = self.catalog.standing(name).await?;
        Ok((template, standing))
    }

    pub async fn templates_with_standing(&self) -> Result<Vec<(Template, VersionStatus)>> {
        self.catalog.list_with_standing().await
    }

    /// Points a name, new or not, at a version that is here.
    pub async fn point_name(&self, name: &str, digest: &str, why: Option<String>) -> Result<Moved> {
        let why = why.unwrap_or_else(|| "pointed there by hand".to_owned());
        fits(&why)?;
        let moved = self.catalog.point_name(name, digest, &why).await?;
        self.name_moved(&moved).await?;
        Ok(moved)
    }

    /// Points a name back at what it pointed at before.
    pub async fn roll_back_template(&self, name: &str, to: Option<&str>) -> Result<Moved> {
        let (moved, _) = self.catalog.roll_back(name, to).await?;
        self.name_moved(&moved).await?;
        Ok(moved)
    }

    /// Keeps a version from being pruned.
    pub async fn pin_template(&self, name: &str, why: &str) -> Result<()> {
        if why.trim().is_empty() {
            return Err(Error::new(Code::RequestInvalid, "a pin needs a reason")
                .field("/why", "must say why the version is kept, for whoever wonders later"));
        }
        fits(why)?;
        let digest = self.catalog.pin(name, Some(why)).await?;
        tracing::info!(template.name = name, template.digest = digest, why, "template pinned");
        let event = TemplateEvent::Pinned { digest, why: why.to_owned() };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        Ok(())
    }

    pub async fn unpin_template(&self, name: &str) -> Result<()> {
        let digest = self.catalog.pin(name, None).await?;
        tracing::info!(template.name = name, template.digest = digest, "template unpinned");
        self.ledger.record_template(name, TemplateEvent::Unpinned { digest }, self.clock.now()).await?;
        Ok(())
    }

    async fn name_moved(&self, moved: &Moved) -> Result<()> {
        if !moved.changed() {
            return Ok(());
        }
        let Moved { name, from, to, why } = moved.clone();
        tracing::info!(template.name = name, template.digest = to, from, why, "name moved");
        let event = TemplateEvent::NameMoved { name: name.clone(), from, to: Some(to), why };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        Ok(())
    }

    /// Removes what no vm, name or pin needs, as far as it is asked for.
    pub async fn prune_templates(&self, request: &PruneRequest) -> Result<Pruned> {
        self.catalog.prune(request).await
    }

    /// Reads every byte of a version. What is wrong is marked, and not repaired.
    pub async fn verify_template(&self, name: &str) -> Result<Verified> {
        let verified = self.catalog.verify(name).await?;
        let Verified { digest, bytes, faults, .. } = &verified;
        match faults.first() {
            None => tracing::info!(template.name = name, template.digest = digest, bytes, "template verified"),
            Some(first) => tracing::error!(
                template.name = name,
                template.digest = digest,
                faults = faults.len(),
                file = first.file,
                offset = first.offset,
                what = first.what,
                "the template is damaged: pull or register it again"
            ),
        }
        let event =
            TemplateEvent::Verified { digest: digest.clone(), faults: u32::try_from(faults.len()).unwrap_or(u32::MAX) };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        Ok(verified)
    }
}
