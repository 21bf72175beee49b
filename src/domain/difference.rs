//! The comparison of the database with the hypervisors.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    host::{HostView, Instance},
    ids::VmId,
    orphaned_runner::OrphanedRunner,
    state::State,
    vm::Vm,
};

/// Differences between the database and the hypervisor, and what the next sweep does about them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// When the instances were listed; of several drivers, the oldest list.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "super::time::with_milliseconds")]
    pub observed_at: Timestamp,
    /// The drivers that cannot list their instances now. Their instances are not compared.
    pub unlisted: Vec<String>,
    /// Mayfly's and known: nothing to do.
    #[schema(value_type = Vec<String>)]
    pub known: Vec<VmId>,
    /// Mayfly's by name and place, but of no live vm, or of an earlier attempt: they are destroyed.
    pub strays: Vec<Instance>,
    /// Vms that should have an instance and have none: their next step notices it and ends or retries them.
    #[schema(value_type = Vec<String>)]
    pub missing: Vec<VmId>,
    /// Foreign: counted, never touched.
    pub foreign: Vec<Instance>,
    /// Mayfly's runners at GitHub whose vm has ended: they are removed there.
    pub runners: Vec<OrphanedRunner>,
}

/// Compares rows with instances. The rows are read before and after the inspection of the host, so that changes in
/// between do not count as differences. A pure function, so that showing and acting cannot disagree.
pub fn difference(before: &[Vm], view: &HostView, after: &[Vm]) -> Difference {
    let listed = |driver: &str| view.listing(driver).is_some_and(|l| l.at.is_some() && l.fault.is_none());
    let unlisted = view.listings.iter().filter(|l| !listed(&l.driver)).map(|l| l.driver.clone()).collect();
    let mut found = Difference {
        observed_at: view.observed_at,
        unlisted,
        known: Vec::new(),
        strays: Vec::new(),
        missing: Vec::new(),
        foreign: Vec::new(),
        runners: Vec::new(),
    };
    for instance in view.instances.iter().filter(|i| listed(&i.driver)) {
        match instance.vm_id {
            None => found.foreign.push(instance.clone()),
            // Whatever its state, a live vm's own step looks after its instance. Nothing else may touch it. Of an earlier attempt
            // nothing is needed any more: its slot was given back when it was gone.
            Some(id) if after.iter().any(|vm| vm.instance().as_str() == instance.name) => found.known.push(id),
            Some(_) if before.iter().any(|vm| vm.instance().as_str() == instance.name) => {}
            Some(_) => found.strays.push(instance.clone()),
        }
    }
    for vm in after {
        let has_guest =
            matches!(vm.state, State::Booting | State::Configuring | State::Running | State::Draining | State::Kept);
        let expected = has_guest
            && vm.spec.resolved().is_some_and(|spec| listed(&spec.driver))
            && before.iter().any(|b| b.id() == vm.id() && (b.state, b.attempt) == (vm.state, vm.attempt));
        let runs = |i: &Instance| i.vm_id.is_some() && i.running && i.name == vm.instance().as_str();
        if expected && !view.instances.iter().any(runs) {
            found.missing.push(vm.id());
        }
    }
    found
}
