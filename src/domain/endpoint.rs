//! Addresses of guests, as seen from the host.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A port of the guest, as seen from the host. In records the two kinds are distinguished by their fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Endpoint {
    /// An address that the host reaches. If it is an address of the host itself, every local user can connect to it.
    Address { host: String, port: u16 },
    /// A Unix socket that is connected to the port, in a directory of the service's user.
    Socket {
        #[schema(value_type = String)]
        socket: PathBuf,
    },
}

impl Endpoint {
    pub fn address(host: impl Into<String>, port: u16) -> Self {
        Endpoint::Address { host: host.into(), port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Address { host, port } => write!(f, "{host}:{port}"),
            Endpoint::Socket { socket } => write!(f, "{}", socket.display()),
        }
    }
}
