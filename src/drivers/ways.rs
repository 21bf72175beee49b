//! How a guest can be reached, for callers that only log in.
#![deny(clippy::wildcard_enum_match_arm)]

use std::path::PathBuf;

use super::{Driver, Observation, Result};
use crate::domain::{Code, InstanceName, endpoint::Endpoint};

/// What a driver knows of the ways to a guest.
pub struct GuestWays {
    /// The address of its SSH port. `None`: not known yet. An error: why it is not known.
    pub ssh: std::result::Result<Option<Endpoint>, (Code, String)>,
    /// The socket of the agent in it.
    pub agent: Option<PathBuf>,
}

/// `None`: the guest does not run.
pub async fn guest_ways(driver: &dyn Driver, name: &InstanceName) -> Result<Option<GuestWays>> {
    Ok(match driver.inspect(name).await? {
        Observation::Running { ssh: Some(ssh), agent, ssh_unseen: _ } => Some(GuestWays { ssh: Ok(Some(ssh)), agent }),
        Observation::Running { ssh: None, agent, ssh_unseen } => {
            Some(GuestWays { ssh: ssh_unseen.map_or(Ok(None), Err), agent })
        }
        Observation::Absent | Observation::Stopped | Observation::Halted { .. } | Observation::Broken { .. } => None,
    })
}
