//! Interprets the driver's observation of one instance. Every variant is matched explicitly, here and nowhere else in
//! the reconciler.
#![deny(clippy::wildcard_enum_match_arm)]

use std::{path::PathBuf, sync::Arc};

use crate::{
    domain::{Code, Vm, endpoint::Endpoint},
    drivers::{Driver, Observation},
    reconcile::failure::{Failure, FailureKind},
};

/// The ways to a guest, as far as they are known.
pub(super) struct Ways {
    /// The address of its SSH port. An error: the host's tables cannot be read, so it is not known whether it has one.
    pub ssh: Result<Option<Endpoint>, Failure>,
    /// The socket of the agent in it.
    pub agent: Option<PathBuf>,
}

/// How the guest can be reached, once it runs.
pub(super) async fn ways(driver: &Arc<dyn Driver>, vm: &Vm) -> Result<Option<Ways>, Failure> {
    match driver.inspect(&vm.instance()).await? {
        Observation::Running { ssh, agent, ssh_unseen } => {
            let ssh = match ssh_unseen {
                None => Ok(ssh),
                Some((code, detail)) => Err(Failure::new(FailureKind::Retry, code, detail)),
            };
            Ok(Some(Ways { ssh, agent }))
        }
        // `Driver::ended`, which every step with a guest also awaits, resolves at once with the reason.
        Observation::Absent | Observation::Stopped | Observation::Halted { .. } => Ok(None),
        Observation::Broken { detail } => {
            Err(Failure::new(FailureKind::Attempt, Code::BootFailed, format!("the instance is broken: {detail}")))
        }
    }
}

/// Whether the instance has already been started.
pub(super) async fn was_started(driver: &Arc<dyn Driver>, vm: &Vm) -> Result<bool, Failure> {
    match driver.inspect(&vm.instance()).await? {
        // A stopped guest still has its hypervisor; `Driver::ended` reports its end.
        Observation::Running { .. } | Observation::Halted { .. } => Ok(true),
        // `Driver::start` reports what is wrong with a broken instance.
        Observation::Absent | Observation::Stopped | Observation::Broken { .. } => Ok(false),
    }
}
