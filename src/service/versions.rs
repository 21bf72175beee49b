//! Versions of templates: where names point, what is pinned.

use super::Service;
use crate::domain::{
    Code, Error, Result, Template,
    version::{Moved, Standing},
};

impl Service {
    /// A template with what is known of it beside its content.
    pub async fn template_with_standing(&self, name: &str) -> Result<(Template, Standing)> {
        let template = self.catalog.get(name).await?;
        let standing = self.catalog.standing(name).await?;
        Ok((template, standing))
    }

    pub async fn templates_with_standing(&self) -> Result<Vec<(Template, Standing)>> {
        self.catalog.list_with_standing().await
    }

    /// Points a name, new or not, at a version that is here.
    pub async fn point_name(&self, name: &str, digest: &str, why: Option<String>) -> Result<Moved> {
        let why = why.unwrap_or_else(|| "pointed there by hand".to_owned());
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
        let digest = self.catalog.pin(name, Some(why)).await?;
        tracing::info!(template.name = name, template.digest = digest, why, "template pinned");
        Ok(())
    }

    pub async fn unpin_template(&self, name: &str) -> Result<()> {
        let digest = self.catalog.pin(name, None).await?;
        tracing::info!(template.name = name, template.digest = digest, "template unpinned");
        Ok(())
    }

    async fn name_moved(&self, moved: &Moved) -> Result<()> {
        if moved.changed() {
            tracing::info!(
                template.name = moved.name,
                template.digest = moved.to,
                from = moved.from,
                why = moved.why,
                "name moved"
            );
        }
        Ok(())
    }
}
