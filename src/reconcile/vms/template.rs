//! The template of a vm. Pulls the image that a queued vm waits for; no slot is held meanwhile.

use std::{sync::Arc, time::Duration};

use crate::{
    domain::{Budgets, Code, Error, Event, ResolvedSpec, TemplateSource, Vm, capacity::Capacity, vm_spec::NetworkUser},
    drivers::registry::DriverRegistry,
    parts::Parts,
    platform::Clock,
    reconcile::{
        failure::{Failure, FailureKind},
        settings::Settings,
    },
    registry::oci::{Digest, Reference, reference::ReferenceError},
    store::{Expect, Ledger, Reader},
    templates::{Catalog, pull::Puller},
};

/// The resolved spec of a vm that holds a slot.
pub(super) fn spec_of(vm: &Vm) -> Result<&ResolvedSpec, Failure> {
    let unknown =
        || Failure::new(FailureKind::Permanent, Code::Internal, "the vm got a slot before its template was here");
    vm.spec.resolved().ok_or_else(unknown)
}

pub(super) struct TemplateFetch {
    ledger: Ledger,
    reader: Reader,
    catalog: Arc<Catalog>,
    puller: Puller,
    drivers: Arc<DriverRegistry>,
    clock: Clock,
    capacity: Capacity,
    /// Budgets of images that do not define any.
    budgets: Budgets,
}

impl TemplateFetch {
    pub fn new(parts: &Parts, settings: &Settings) -> Self {
        let Parts { ledger, reader, catalog, puller, drivers, clock, .. } = parts.clone();
        Self {
            ledger,
            reader,
            catalog,
            puller,
            drivers,
            clock,
            capacity: settings.capacity,
            budgets: settings.budgets.clone(),
        }
    }

    /// Returns when the vm's template is present and its row records it; at once, if the vm does not wait for an
    /// image.
    pub async fn obtain(&self, vm: &Vm) -> Result<(), Failure> {
        let TemplateSource::Awaited { awaits } = &vm.spec.source else { return Ok(()) };
        let image: Reference = vm.spec.template.parse().map_err(|error: ReferenceError| {
            Failure::new(
                FailureKind::Permanent,
                Code::Internal,
                format!("the stored image reference is invalid: {error}"),
            )
        })?;
        let pulled = self.puller.obtain(&image, &vm.id().to_string()).await;
        let template = match pulled {
            Ok(template) => template,
            Err(error) => {
                let refused = Error::from(&*error);
                let retry_after = refused.retry_after.map(|seconds| Duration::from_secs(seconds.into()));
                let failure = Failure { retry_after, ..refused.into() };
                if failure.kind == FailureKind::Permanent
                    && let Some(staged) = error.image()
                    && let Err(error) = self.discard_staged(staged).await
                {
                    tracing::warn!(vm.id = %vm.id(), error, "cannot remove the data of an image that cannot be pulled");
                }
                return Err(failure);
            }
        };
        // Takes a lease, because no row in the database refers to the template yet. A template that was removed or
        // found damaged meanwhile is pulled again.
        let taken = self.catalog.take(&template.digest).await;
        let (template, _lease) = taken.map_err(|error| Failure { kind: FailureKind::Retry, ..error.into() })?;
        let user = NetworkUser { runner: vm.spec.runner, pool: vm.spec.pool.as_deref() };
        let can = self.drivers.network_support(&template.driver);
        let (spec, budgets) = awaits.resolve(&template, &self.budgets, &self.capacity, user, &can)?;
        if self.drivers.get(&spec.driver).is_none() {
            let detail =
                format!("{} is for the driver {}, which is not enabled in this service", vm.spec.template, spec.driver);
            return Err(Failure::new(FailureKind::Permanent, Code::DriverUnsupported, detail));
        }
        let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
        self.ledger.apply(vm.id(), expect, Event::TemplateReady { spec, budgets }, self.clock.now()).await?;
        Ok(())
    }

    /// Removes what was fetched of an image that cannot be pulled, unless a pull of the API needs it.
    async fn discard_staged(&self, image: Digest) -> Result<(), String> {
        let live = self.reader.live_pulls().await.map_err(|error| error.to_string())?;
        if live.iter().all(|pull| pull.image_digest != Some(image.to_string())) {
            self.puller.discard_released(image).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
