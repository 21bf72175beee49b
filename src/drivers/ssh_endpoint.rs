//! Where a guest's SSH port is, for callers that only log in.
#![deny(clippy::wildcard_enum_match_arm)]

use super::{Driver, Observation, Result};
use crate::domain::{Code, InstanceName, endpoint::Endpoint};

/// What a driver knows of a guest's SSH port.
pub enum SshEndpoint {
    At(Endpoint),
    /// The guest runs, and its address is not known: not yet, or for this reason.
    Unknown(Option<(Code, String)>),
    /// The guest does not run.
    NoGuest,
}

pub async fn ssh_endpoint(driver: &dyn Driver, name: &InstanceName) -> Result<SshEndpoint> {
    Ok(match driver.inspect(name).await? {
        Observation::Running { ssh: Some(ssh), agent: _, ssh_unseen: _ } => SshEndpoint::At(ssh),
        Observation::Running { ssh: None, agent: _, ssh_unseen } => SshEndpoint::Unknown(ssh_unseen),
        Observation::Absent | Observation::Stopped | Observation::Halted { .. } | Observation::Broken { .. } => {
            SshEndpoint::NoGuest
        }
    })
}
