//! What is made of a look at one instance. The only place where the reconciler looks at one: a driver's answer has more values
//! than "it runs", and each of them is named here.
#![deny(clippy::wildcard_enum_match_arm)]

use std::{path::PathBuf, sync::Arc};

use crate::{
    domain::{Code, Vm, endpoint::Endpoint},
    drivers::{Driver, Observation},
    reconcile::failure::{Failure, FailureKind},
};

/// Where the guest's SSH port is reached, and the socket that leads to the agent in it, as far as they are known.
pub(super) type Ways = (Option<Endpoint>, Option<PathBuf>);

/// The ways to the guest, once it runs.
pub(super) async fn ways(driver: &Arc<dyn Driver>, vm: &Vm) -> Result<Option<Ways>, Failure> {
    match driver.inspect(&vm.instance()).await? {
        Observation::Running { ssh, agent } => Ok(Some((ssh, agent))),
        // `Driver::ended`, which every step with a guest waits for, resolves at once, with the reason.
        Observation::Absent | Observation::Stopped | Observation::Halted { .. } => Ok(None),
        Observation::Broken { detail } => {
            Err(Failure::new(FailureKind::Attempt, Code::BootFailed, format!("the instance is broken: {detail}")))
        }
    }
}

/// Whether the instance was started before, so that there is nothing to start.
pub(super) async fn was_started(driver: &Arc<dyn Driver>, vm: &Vm) -> Result<bool, Failure> {
    match driver.inspect(&vm.instance()).await? {
        // A guest that was stopped still has its hypervisor, and its end is told by `Driver::ended`.
        Observation::Running { .. } | Observation::Halted { .. } => Ok(true),
        // What is wrong with a broken one is for the start to say.
        Observation::Absent | Observation::Stopped | Observation::Broken { .. } => Ok(false),
    }
}
