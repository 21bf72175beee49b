//! A vm that asked for an image which is not here: it is pulled while the vm waits, and no slot is held for it.

use super::{
    Reconciler,
    steps::{Failure, FailureKind},
};
use crate::{
    domain::{Basis, Code, Event, Vm},
    templates::oci::{Reference, reference::ReferenceError},
};

impl Reconciler {
    /// Ends when the image is a template here. Never, for a vm that waits for something else.
    pub(super) async fn obtain_template(&self, vm: &Vm) -> Result<Event, Failure> {
        let Basis::Awaited { awaits } = &vm.draft.basis else { return std::future::pending().await };
        let image: Reference = vm.draft.template.parse().map_err(|error: ReferenceError| {
            Failure::new(FailureKind::Permanent, Code::Internal, format!("the stored image is none: {error}"))
        })?;
        let pulled = self.puller.obtain(&image, &vm.id().to_string(), &self.settings.budgets).await;
        let template = pulled.map_err(|error| Failure::from(crate::domain::Error::from(&*error)))?;
        let (spec, budgets) = awaits.of(&template, &self.settings.capacity)?;
        if self.drivers.get(&spec.driver).is_none() {
            let detail = format!(
                "{} is for the driver {}, which is not enabled in this service",
                vm.draft.template, spec.driver
            );
            return Err(Failure::new(FailureKind::Permanent, Code::DriverUnsupported, detail));
        }
        Ok(Event::TemplateReady { spec, budgets })
    }
}
