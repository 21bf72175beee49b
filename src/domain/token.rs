//! API tokens and their permissions.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ids::{TokenId, VmId};

/// What an API token may do. Each scope includes the ones after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
#[schema(as = Scope)]
pub enum TokenScope {
    /// Everything, including tokens and templates.
    Admin,
    /// Create and end vms, and read.
    Create,
    /// Read.
    Read,
}

impl TokenScope {
    pub fn includes(self, needed: TokenScope) -> bool {
        let rank = |s| match s {
            TokenScope::Admin => 2,
            TokenScope::Create => 1,
            TokenScope::Read => 0,
        };
        rank(self) >= rank(needed)
    }

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// An API token as stored, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiToken {
    pub id: TokenId,
    pub name: String,
    pub scope: TokenScope,
    pub created_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
}

/// The caller, after its token was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    Token {
        id: TokenId,
        name: String,
        scope: TokenScope,
    },
    /// A guest with its per-vm token.
    Guest(VmId),
}
