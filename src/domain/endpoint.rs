//! Addresses of guests, as seen from the host.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Address of a port of the guest, as seen from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Endpoint {
    pub host: String,
    pub port: u16,
}
