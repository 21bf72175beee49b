//! Why a start fails.

use std::io;

use crate::{platform::database::OpenError, reconcile::NetworkFault, store::vault};

/// Why the service did not start: one sentence with a remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("another mayfly serves {dir}; stop it first, or give this one its own --data-dir")]
    InUse { dir: String },
    #[error("cannot use the data directory {dir}: {cause}")]
    DataDir { dir: String, cause: io::Error },
    #[error(
        "the path of the data directory {dir} has {length} bytes and may have {limit}, because systems limit the path of a \
         socket: choose a shorter one with --data-dir"
    )]
    TooLong { dir: String, length: usize, limit: usize },
    #[error(transparent)]
    Database(#[from] OpenError),
    #[error(transparent)]
    Vault(#[from] vault::VaultError),
    #[error("the templates under {dir} cannot be used: {cause}")]
    Templates { dir: String, cause: crate::domain::Error },
    #[error("cannot listen on {address}: {cause}; choose another address with {setting}")]
    Listen { address: String, setting: &'static str, cause: io::Error },
    #[error("{0}")]
    Tls(String),
    #[error(
        "{key} is missing and {database} was written with it; restore the key from a backup, or move the database away to start anew"
    )]
    KeyLost { key: String, database: String },
    #[error("the driver {driver} cannot be used: {cause}")]
    Driver { driver: &'static str, cause: String },
    #[error("a source of jobs cannot be used: {0}; `mayfly github check` and `mayfly source check` say more")]
    Source(String),
    #[error("the network settings cannot be used: {0}")]
    Network(#[from] NetworkFault),
    #[error("the service ended, because a part of it ({part}) had ended by itself; its log has the cause")]
    Part { part: &'static str },
    #[error("cannot set up the admin token: {0}")]
    AdminToken(String),
    #[error("cannot find this program's own path, which guests' connections are relayed with: {0}")]
    OwnPath(io::Error),
}

impl StartError {
    /// Whether the same start may succeed later without a change by the administrator. A service manager must not repeat one that
    /// cannot.
    pub fn passes(&self) -> bool {
        match self {
            StartError::InUse { .. }
            | StartError::DataDir { .. }
            | StartError::Templates { .. }
            | StartError::Listen { .. }
            | StartError::Part { .. }
            | StartError::AdminToken(_)
            | StartError::OwnPath(_) => true,
            StartError::Database(error) => error.passes(),
            StartError::TooLong { .. }
            | StartError::Vault(_)
            | StartError::Tls(_)
            | StartError::KeyLost { .. }
            | StartError::Driver { .. }
            | StartError::Source(_)
            | StartError::Network(_) => false,
        }
    }
}
