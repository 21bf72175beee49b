//! `DeleteInstance`, `RemoveAllInstances`

use std::time::Duration;

use super::{
    environment::GarmEnvironment,
    failure::GarmFailure,
    service::{GarmVm, ProviderService, VmSelection},
};

/// How long a creation that GARM has killed may still be on its way to the service.
const IN_FLIGHT: Duration = Duration::from_secs(2);

/// Ends every vm of this name. GARM asks at once after it has killed a creation, so the vm may be stored a moment later than
/// it is looked for.
pub(super) async fn run(environment: &GarmEnvironment, service: &ProviderService) -> Result<(), GarmFailure> {
    let name = environment.instance()?;
    let of = VmSelection { controller: environment.controller()?, name: Some(name), ..VmSelection::default() };
    let mut vms = service.list(of).await?;
    if vms.is_empty() {
        // The record of a vm of this name shows that its creation has arrived.
        if service.list(VmSelection { deleted: true, ..of }).await?.is_empty() {
            tokio::time::sleep(IN_FLIGHT).await;
        }
        vms = service.list(of).await?;
    }
    if vms.is_empty() {
        return Err(GarmFailure::NotFound(format!("there is no vm of {name:.100?}")));
    }
    end(&vms, service).await
}

/// Ends the vms of the pool, or, if GARM names no pool, all of this GARM.
pub(super) async fn all(environment: &GarmEnvironment, service: &ProviderService) -> Result<(), GarmFailure> {
    let of = VmSelection {
        controller: environment.controller()?,
        pool: environment.pool_if_any(),
        ..VmSelection::default()
    };
    end(&service.list(of).await?, service).await
}

async fn end(vms: &[GarmVm], service: &ProviderService) -> Result<(), GarmFailure> {
    for vm in vms {
        service.delete(vm).await?;
    }
    Ok(())
}
