//! API tokens and their permissions.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    error::{Code, Error, Result},
    guest::GuestRole,
    ids::{TokenId, VmId},
    token_limits::TokenLimits,
};

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

/// A token that is to be created.
#[derive(Clone, Debug)]
pub struct NewToken {
    pub name: String,
    pub scope: TokenScope,
    pub expires_at: Option<Timestamp>,
    pub limits: Option<TokenLimits>,
}

impl NewToken {
    /// Without limits, and valid until it is revoked.
    pub fn new(name: impl Into<String>, scope: TokenScope) -> Self {
        Self { name: name.into(), scope, expires_at: None, limits: None }
    }

    pub fn check(&self, now: Timestamp) -> Result<()> {
        let invalid = |pointer: &str, what: &str| {
            Err(Error::new(Code::RequestInvalid, "there can be no such token").field(pointer, what))
        };
        let plain =
            self.name.len() <= 63 && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if self.name.is_empty() || !plain {
            return invalid("/name", "1 to 63 letters, digits, '.', '_' or '-'");
        }
        if self.expires_at.is_some_and(|at| at <= now) {
            return invalid("/expires_at", "must be in the future");
        }
        match (&self.limits, self.scope) {
            (None, _) => Ok(()),
            (Some(limits), TokenScope::Create) => limits.check(),
            (Some(_), TokenScope::Admin) => {
                invalid("/limits", "a token with the scope admin has no limits: leave it out")
            }
            (Some(_), TokenScope::Read) => {
                invalid("/limits", "limit what is created, which the scope read does not allow")
            }
        }
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
    pub expires_at: Option<Timestamp>,
    /// Up to about a minute before the last request.
    pub last_used_at: Option<Timestamp>,
    pub limits: Option<TokenLimits>,
}

/// The API token of a request, after it was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerToken {
    pub id: TokenId,
    pub scope: TokenScope,
    pub limits: Option<Arc<TokenLimits>>,
}

/// The caller, after its token was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    Token(CallerToken),
    /// A guest with one of its vm's tokens.
    Guest(VmId, GuestRole),
}
