//! Templates from other layouts, and in them.

use super::Service;
use crate::{
    domain::{Result, Template},
    templates::layouts::{self, ExportDestination, ExportRequest, Exported, ImportRequest, Notice},
};

impl Service {
    /// Imports a template. A VM is taken whether or not this host has a driver for it: it may be here to be converted or to be
    /// pushed.
    pub async fn import_template(&self, mut request: ImportRequest) -> Result<(Template, Vec<Notice>)> {
        let layout = request.layout;
        // Their files go when these are dropped, which is after they were registered.
        let objects = self.fetch_source(&mut request).await?;
        let prepared = layouts::import(&self.catalog, &self.settings.tools, request).await?;
        let new = prepared.template.clone();
        let template =
            if layout.is_image() { self.register_template(new).await? } else { self.catalog.register(new).await? };
        tracing::info!(
            template.name = %template.name, template.digest = %template.digest, layout = layout.as_str(),
            notices = prepared.notices.len(), "template imported"
        );
        let mut notices = prepared.notices;
        notices.extend(objects.into_iter().flat_map(|object| object.notices));
        Ok((template, notices))
    }

    pub async fn export_template(&self, name: &str, request: ExportRequest) -> Result<Exported> {
        let template = self.get_template(name).await?;
        let (digest, layout) = (template.digest.clone(), request.layout);
        let exported = match request.to.clone() {
            ExportDestination::Object { at, overwrite } => {
                self.export_object(template, request, &at, overwrite).await?
            }
            ExportDestination::File(_) => {
                layouts::export(&self.catalog, &self.settings.tools, template, request).await?
            }
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
