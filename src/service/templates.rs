//! Templates: registering, showing, deleting.

use super::Service;
use crate::{
    domain::{Code, Error, Result, Template},
    templates::NewTemplate,
};

impl Service {
    pub async fn register_template(&self, new: NewTemplate) -> Result<Template> {
        let Some(driver) = self.drivers.get(&new.driver) else {
            return Err(Error::new(Code::DriverUnsupported, format!("this service has no driver {:?}", new.driver))
                .field("/driver", format!("one of: {}", self.drivers.names().join(", "))));
        };
        if !driver.capabilities().guests.contains(&new.os) {
            return Err(Error::new(
                Code::DriverUnsupported,
                format!("the driver {} does not run this guest system", new.driver),
            )
            .field("/os", "not supported by the driver"));
        }
        let template = self.catalog.register(new).await?;
        tracing::info!(template.name = %template.name, template.digest = %template.digest, "template registered");
        Ok(template)
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
        tracing::info!(template.name = %name, template.digest = %template.digest, "template deleted");
        Ok(())
    }
}
