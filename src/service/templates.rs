//! Templates: registering, showing, deleting.

use std::sync::Arc;

use super::Service;
use crate::{
    domain::{Code, Error, Handover, Result, Template, TemplateEvent},
    drivers::Driver,
    registry::RegistryError,
    templates::{
        NewTemplate,
        pull::PullProgress,
        push::{PushError, PushRequest, Pushed},
    },
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

    /// Pushes a template to a registry. Asking again after a failure goes on where it stopped.
    pub async fn push_template(&self, request: PushRequest) -> Result<Pushed> {
        let image = request.image.to_string();
        let (meter, _) = tokio::sync::watch::channel(PullProgress::default());
        tracing::info!(image, template.name = request.template, "pushing a template");
        let pushed = self.puller.pusher().push(&request, &meter).await.map_err(|error| push_failed(&error))?;
        tracing::info!(
            image,
            template.name = request.template,
            image.digest = %pushed.digest,
            bytes = pushed.bytes_uploaded,
            "template pushed"
        );
        Ok(pushed)
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

fn push_failed(error: &PushError) -> Error {
    let code = match error {
        PushError::Template(error) => {
            return Error {
                fields: error.fields.clone(),
                retry_after: error.retry_after,
                ..Error::new(error.code, error.detail.clone())
            };
        }
        PushError::Damaged { .. } | PushError::Unfit { .. } => {
            return Error::new(Code::TemplateInvalid, error.to_string());
        }
        PushError::Storage(_) => return Error::new(Code::HostUnavailable, error.to_string()),
        PushError::Target { .. } => Code::ImagePushRefused,
        PushError::Registry { error, .. } => match error {
            RegistryError::Unreachable { .. } | RegistryError::Answer { .. } => Code::ImagePushFailed,
            RegistryError::Refused { status: 429 | 500.., .. } => Code::ImagePushFailed,
            RegistryError::Refused { .. }
            | RegistryError::Settings { .. }
            | RegistryError::Credentials(_)
            | RegistryError::Denied { .. }
            | RegistryError::NotFound { .. } => Code::ImagePushRefused,
        },
    };
    Error::new(code, error.to_string()).field("/image", "could not be pushed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_push_that_failed_says_whose_turn_it_is() {
        let refused = |status| RegistryError::Refused {
            registry: "registry.example.com".into(),
            status,
            what: "an upload".into(),
            said: String::new(),
        };
        let (registry, what) = ("registry.example.com".to_owned(), "it".to_owned());
        for (error, code) in [
            (refused(503), Code::ImagePushFailed),
            (refused(429), Code::ImagePushFailed),
            (refused(413), Code::ImagePushRefused),
            (RegistryError::Denied { registry: registry.clone(), what: what.clone() }, Code::ImagePushRefused),
            (RegistryError::Unreachable { registry, what }, Code::ImagePushFailed),
        ] {
            let image = "registry.example.com/ci/a:1".parse().unwrap();
            let request = Box::new(PushRequest { template: "a".into(), image, part_size: None });
            let failed = PushError::Registry { request, error, hint: "" };
            let error = push_failed(&failed);
            assert_eq!(error.code, code, "{failed}");
            assert_eq!(error.fields[0].pointer, "/image");
        }
        let gone = PushError::Template(Error::new(Code::TemplateInUse, "x").retry_after(5));
        assert_eq!(push_failed(&gone).retry_after, Some(5));
    }
}
