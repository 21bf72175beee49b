//! Runners as CI servers show them.

use secrecy::SecretString;

use crate::domain::RemoteId;

/// A runner that a server lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRunner {
    pub id: RemoteId,
    pub name: String,
    /// Whether it is connected. A runner that is not need not have ended. `None`: the server's word for it is not known to
    /// this program.
    pub online: Option<bool>,
    /// Whether it has a job. Servers report this late.
    pub busy: bool,
}

/// A runner that was registered just now.
#[derive(Clone, Debug)]
pub struct NewRegistration {
    pub runner_id: RemoteId,
    /// What the runner in the guest needs: a credential, which the server shows once.
    pub secret: SecretString,
}

/// Whether a removed runner existed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    Now,
    /// It was already gone, which counts as success.
    Before,
}

/// Whether a job was reserved for a vm of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Granted,
    /// The server wants no more jobs to be started for now.
    Paused,
    /// Another service has it, or it does not wait any more.
    Taken,
}
