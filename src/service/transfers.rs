//! Imports templates from other layouts, exports them, and pushes them to registries.

use std::sync::Arc;

use super::{objects::Objects, templates::Templates};
use crate::{
    domain::{Code, Error, Result, Template},
    parts::Parts,
    templates::{Catalog, layouts, progress::PullProgress, pull::Puller, push::PushError},
};
pub use crate::{
    registry::oci::reference::ReferenceError,
    templates::{
        layouts::{
            ExportDestination, ExportRequest, Exported, ImportRequest, Notice, Policy, TemplateLayout, Tools,
            WrittenFile,
        },
        push::{PushRequest, Pushed},
    },
};

#[derive(Clone)]
pub struct Transfers {
    catalog: Arc<Catalog>,
    puller: Puller,
    templates: Templates,
    objects: Objects,
    tools: Tools,
}

impl Transfers {
    pub fn new(parts: &Parts, templates: Templates, tools: Tools) -> Self {
        let Parts { catalog, puller, .. } = parts.clone();
        Self { catalog, puller, templates, objects: Objects::new(parts), tools }
    }

    /// Pushes a template to a registry. A repeated call continues where the last one stopped.
    pub async fn push(&self, request: PushRequest) -> Result<Pushed> {
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

    /// Imports a template. A VM is accepted whether or not this host has a driver for it: it may be imported only to
    /// be converted or pushed.
    pub async fn import(&self, mut request: ImportRequest) -> Result<(Template, Vec<Notice>)> {
        let layout = request.layout;
        // Deletes the downloaded files when dropped, after the template was registered.
        let objects = self.objects.fetch_source(&mut request).await?;
        let prepared = layouts::import(&self.catalog, &self.tools, request).await?;
        let new = prepared.template.clone();
        let template =
            if layout.is_image() { self.templates.register(new).await? } else { self.catalog.register(new).await? };
        tracing::info!(
            template.name = %template.name, template.digest = %template.digest, layout = layout.as_str(),
            notices = prepared.notices.len(), "template imported"
        );
        let mut notices = prepared.notices;
        notices.extend(objects.into_iter().flat_map(|object| object.notices));
        Ok((template, notices))
    }

    pub async fn export(&self, name: &str, request: ExportRequest) -> Result<Exported> {
        let template = self.templates.get(name).await?;
        let (digest, layout) = (template.digest.clone(), request.layout);
        let exported = match request.to.clone() {
            ExportDestination::Object { at, overwrite } => {
                self.objects.export(template, request, &at, overwrite).await?
            }
            ExportDestination::File(_) => layouts::export(&self.catalog, &self.tools, template, request).await?,
        };
        tracing::info!(
            template.name = name,
            template.digest = digest,
            layout = layout.as_str(),
            files = exported.files.len(),
            "template exported"
        );
        Ok(exported)
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
        PushError::Damaged { .. } | PushError::NotPushable { .. } => {
            return Error::new(Code::TemplateInvalid, error.to_string());
        }
        PushError::Storage(_) => return Error::new(Code::HostUnavailable, error.to_string()),
        PushError::Target { .. } => Code::ImagePushRefused,
        PushError::Registry { error: failure, .. } => {
            let code = if failure.is_temporary() { Code::ImagePushFailed } else { Code::ImagePushRefused };
            let retry_after = failure.retry_after();
            return Error { retry_after, ..Error::new(code, error.to_string()) }.field("/image", "could not be pushed");
        }
    };
    Error::new(code, error.to_string()).field("/image", "could not be pushed")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::RegistryError;

    #[test]
    fn a_push_that_failed_says_whose_turn_it_is() {
        let refused = |status| RegistryError::Refused {
            registry: "registry.example.com".into(),
            status,
            what: "an upload".into(),
            said: String::new(),
            retry_after: Some(9),
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
            let after =
                matches!(&failed, PushError::Registry { error, .. } if matches!(error, RegistryError::Refused { .. }));
            assert_eq!(error.retry_after, (after && code == Code::ImagePushFailed).then_some(9));
            assert_eq!(error.fields[0].pointer, "/image");
        }
        let gone = PushError::Template(Error::new(Code::TemplateInUse, "x").retry_after(5));
        assert_eq!(push_failed(&gone).retry_after, Some(5));
    }
}
