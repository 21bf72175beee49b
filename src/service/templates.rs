//! Templates: registering, showing, deleting.

use std::sync::Arc;

use super::Service;
use crate::{
    domain::{Code, Error, Handover, Result, Template, TemplateEvent},
    drivers::Driver,
    templates::{NewTemplate, pull::PullError, registry::RegistryError},
};

impl Service {
    pub async fn register_template(&self, new: NewTemplate) -> Result<Template> {
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

    pub async fn list_templates(&self) -> Result<Vec<Template>> {
        self.catalog.list().await
    }

    pub async fn get_template(&self, name: &str) -> Result<Template> {
        self.catalog.get(name).await
    }

    pub async fn delete_template(&self, name: &str) -> Result<()> {
        let template = self.get_template(name).await?;
        if let Some(vm) = self.reader.template_in_use(&template.digest).await? {
            return Err(Error::new(Code::TemplateInUse, format!("the vm {vm} needs it")).retry_after(60));
        }
        self.catalog.remove(name).await?;
        let event = TemplateEvent::Deleted { digest: template.digest.clone() };
        self.ledger.record_template(name, event, self.clock.now()).await?;
        // Following the tag would bring it back.
        self.ledger.remove_watch(name, self.clock.now()).await?;
        tracing::info!(template.name = %name, template.digest = %template.digest, "template deleted");
        Ok(())
    }
}

/// Who is at fault decides the code: the caller's reference or rights, the image, or the way to it.
pub(super) fn pull_failed(error: &PullError) -> Error {
    let code = match error {
        PullError::Template(error) => {
            return Error {
                fields: error.fields.clone(),
                retry_after: error.retry_after,
                ..Error::new(error.code, error.detail.clone())
            };
        }
        PullError::Registry(
            RegistryError::Settings { .. }
            | RegistryError::Credentials(_)
            | RegistryError::Denied { .. }
            | RegistryError::NotFound { .. },
        ) => Code::ImageRefused,
        PullError::Registry(
            RegistryError::Unreachable { .. } | RegistryError::Refused { .. } | RegistryError::Answer { .. },
        )
        | PullError::Layer { .. }
        | PullError::Lost => Code::ImageUnavailable,
        PullError::Manifest { .. } | PullError::Content { .. } => Code::TemplateInvalid,
        PullError::Space { .. } | PullError::Storage(_) => Code::HostUnavailable,
    };
    Error::new(code, error.to_string()).field("/image", "could not be pulled")
}
