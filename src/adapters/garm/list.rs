//! `ListInstances`, `GetInstance`

use serde_json::Value;

use super::{
    environment::GarmEnvironment,
    failure::GarmFailure,
    identity, instance,
    service::{ProviderService, VmSelection},
};

/// All living vms of one pool. GARM forgets, and in scale sets replaces, what is not in the list, so vms that wait and boot
/// are in it.
pub(super) async fn run(environment: &GarmEnvironment, service: &ProviderService) -> Result<String, GarmFailure> {
    let of = VmSelection {
        controller: environment.controller()?,
        pool: Some(environment.pool()?),
        ..VmSelection::default()
    };
    let mut names: Vec<String> = Vec::new();
    for vm in service.list(of).await?.iter().filter(|vm| vm.is_alive()) {
        let name = vm.label(identity::NAME).to_owned();
        // Of two attempts of one name, GARM knows one.
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(Value::from_iter(names.iter().map(|name| instance::running(name))).to_string())
}

/// A living vm of this name.
pub(super) async fn get(environment: &GarmEnvironment, service: &ProviderService) -> Result<String, GarmFailure> {
    let name = environment.instance()?;
    let of = VmSelection { controller: environment.controller()?, name: Some(name), ..VmSelection::default() };
    if service.list(of).await?.iter().any(|vm| vm.is_alive()) {
        return Ok(instance::running(name).to_string());
    }
    Err(GarmFailure::NotFound(format!("there is no vm of {name:.100?}")))
}
