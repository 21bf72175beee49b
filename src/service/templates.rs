//! Templates: registering, showing and deleting them, moving names, pinning, pruning and verifying versions.

use std::sync::Arc;

pub use crate::domain::new_template::NewTemplate;
use crate::{
    domain::{
        Budgets, Code, Error, Handover, Result, Template, TemplateEvent,
        template_settings::SettingsChange,
        version::{Moved, PruneRequest, Pruned, Verified, VersionStatus},
    },
    drivers::{Driver, registry::DriverRegistry},
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader},
    templates::Catalog,
};

/// Limit of a reason, which is one line in listings.
const LONGEST_WHY: usize = 200;

fn fits(why: &str) -> Result<()> {
    if why.chars().count() > LONGEST_WHY || why.chars().any(char::is_control) {
        return Err(Error::new(Code::RequestInvalid, "the reason is not usable")
            .field("/why", format!("must be one line of at most {LONGEST_WHY} characters")));
    }
    Ok(())
}

#[derive(Clone)]
pub struct Templates {
    ledger: Ledger,
    reader: Reader,
    catalog: Arc<Catalog>,
    drivers: Arc<DriverRegistry>,
    clock: Clock,
    budgets: Budgets,
}

impl Templates {
    pub fn new(parts: &Parts, budgets: Budgets) -> Self {
        let Parts { ledger, reader, catalog, drivers, clock, .. } = parts.clone();
        Self { ledger, reader, catalog, drivers, clock, budgets }
    }

    /// Budgets of templates that do not define any.
    pub fn default_budgets(&self) -> &Budgets {
        &self.budgets
    }

    pub async fn register(&self, new: NewTemplate) -> Result<Template> {
        if let Some(name) = &new.driver {
            self.driver_named(name)?;
        }
        let outline = self.catalog.outline(new.clone()).await?;
        let can = self.driver_named(&outline.driver)?.capabilities();
        let refuse = |field: &str, what: &str| {
            let detail = format!("the driver {} {what}", outline.driver);
            Err(Error::new(Code::DriverUnsupported, detail).field(field, "not supported by the driver"))
        };
        if !can.guests.contains(&outline.os) {
            return refuse("/os", "does not run this guest system");
        }
        match outline.handover {
            Handover::Seed if !can.seed => return refuse("/handover", "gives guests no seed volume: say ssh or agent"),
            Handover::Agent if !can.agent => {
                return refuse("/handover", "has no channel to an agent in the guest: say seed or ssh");
            }
            Handover::Seed | Handover::Ssh | Handover::Agent => {}
        }
        can.network.check(&outline.driver, new.network)?;
        let before = match &new.name {
            Some(name) => self.catalog.get(name).await.ok(),
            None => None,
        };
        let template = self.catalog.register(new).await?;
        if before.is_none_or(|before| before.digest != template.digest) {
            let event = TemplateEvent::Registered { digest: template.digest.clone() };
            self.ledger.record_template(&template.name, event, self.clock.now()).await?;
        }
        tracing::info!(template.name = %template.name, template.digest = %template.digest, "template registered");
        Ok(template)
    }

    fn driver_named(&self, name: &str) -> Result<&Arc<dyn Driver>> {
        self.drivers.get(name).ok_or_else(|| {
            Error::new(Code::DriverUnsupported, format!("this service has no driver {name:?}"))
                .field("/driver", format!("one of: {}", self.drivers.names().join(", ")))
        })
    }

    pub async fn list(&self) -> Result<Vec<Template>> {
        self.catalog.list().await
    }

    pub async fn get(&self, name: &str) -> Result<Template> {
        self.catalog.get(name).await
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        let template = self.get(name).await?;
        if let Some(vm) = self.reader.template_in_use(&template.digest).await? {
            return Err(Error::new(Code::TemplateInUse, format!("the vm {vm} needs it")).retry_after(60));
        }
        self.catalog.remove(name).await?;
        let event = TemplateEvent::Deleted { digest: template.digest.clone() };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        // A watch would pull the template again.
        self.ledger.remove_watch(name, self.clock.now()).await?;
        tracing::info!(template.name = %name, template.digest = %template.digest, "template deleted");
        Ok(())
    }

    /// A template with its version metadata.
    pub async fn get_with_status(&self, name: &str) -> Result<(Template, VersionStatus)> {
        let template = self.catalog.get(name).await?;
        let status = self.catalog.status(name).await?;
        Ok((template, status))
    }

    pub async fn list_with_status(&self) -> Result<Vec<(Template, VersionStatus)>> {
        self.catalog.list_with_status().await
    }

    /// Points a name, new or existing, at a version in the catalog.
    pub async fn point_name(&self, name: &str, digest: &str, why: Option<String>) -> Result<Moved> {
        let why = why.unwrap_or_else(|| "pointed there by hand".to_owned());
        fits(&why)?;
        let moved = self.catalog.point_name(name, digest, &why).await?;
        self.name_moved(&moved).await?;
        Ok(moved)
    }

    /// Points a name at its previous version.
    pub async fn roll_back(&self, name: &str, to: Option<&str>) -> Result<Moved> {
        let (moved, _) = self.catalog.roll_back(name, to).await?;
        self.name_moved(&moved).await?;
        Ok(moved)
    }

    /// Protects a version from pruning.
    pub async fn pin(&self, name: &str, why: &str) -> Result<()> {
        if why.trim().is_empty() {
            return Err(Error::new(Code::RequestInvalid, "a pin needs a reason")
                .field("/why", "must say why the version is kept"));
        }
        fits(why)?;
        let digest = self.catalog.pin(name, Some(why)).await?;
        tracing::info!(template.name = name, template.digest = digest, why, "template pinned");
        let event = TemplateEvent::Pinned { digest, why: why.to_owned() };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        Ok(())
    }

    pub async fn unpin(&self, name: &str) -> Result<()> {
        let digest = self.catalog.pin(name, None).await?;
        tracing::info!(template.name = name, template.digest = digest, "template unpinned");
        self.ledger.record_template(name, TemplateEvent::Unpinned { digest }, self.clock.now()).await?;
        Ok(())
    }

    /// Changes the settings that a version sets itself. Vms that exist keep theirs.
    pub async fn change_settings(&self, name: &str, change: SettingsChange) -> Result<()> {
        let template = self.catalog.get(name).await?;
        if let Some(mode) = change.network {
            self.driver_named(&template.driver)?.capabilities().network.check(&template.driver, mode)?;
        }
        if let Some(ready) = change.ready.clone().unwrap_or(template.ready) {
            let mut budgets = template.budgets;
            for (name, value) in &change.budgets {
                budgets.set(name, *value);
            }
            ready.check()?;
            ready.check_provisioning(template.handover == Handover::Agent)?;
            ready.check_within(budgets.on(&self.budgets).configure_seconds)?;
        }
        let digest = self.catalog.change_settings(name, change).await?;
        tracing::info!(template.name = name, template.digest = digest, "template settings changed");
        self.ledger.record_template(name, TemplateEvent::SettingsChanged { digest }, self.clock.now()).await?;
        Ok(())
    }

    async fn name_moved(&self, moved: &Moved) -> Result<()> {
        if !moved.changed() {
            return Ok(());
        }
        let Moved { name, from, to, why } = moved.clone();
        tracing::info!(template.name = name, template.digest = to, from, why, "template name moved");
        let event = TemplateEvent::NameMoved { name: name.clone(), from, to: Some(to), why };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        Ok(())
    }

    /// Removes versions that no vm, name or pin needs, as requested.
    pub async fn prune(&self, request: &PruneRequest) -> Result<Pruned> {
        self.catalog.prune(request).await
    }

    /// Reads and checks every byte of a version. Damage is recorded, not repaired.
    pub async fn verify(&self, name: &str) -> Result<Verified> {
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
                "the template is damaged; pull or register it again"
            ),
        }
        let event =
            TemplateEvent::Verified { digest: digest.clone(), faults: u32::try_from(faults.len()).unwrap_or(u32::MAX) };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        Ok(verified)
    }
}
