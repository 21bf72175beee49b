//! Credentials of a request, and the tokens that they need.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use secrecy::SecretString;

use super::{Scope, budget::RateLimiter};

/// A token is renewed when its remaining lifetime is below this.
const MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// Newer tokens may not be known to all of GitHub's servers yet.
const FRESH: SignedDuration = SignedDuration::from_secs(5);

/// The identity that is counted: rate limits and conditional answers are per identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum CredentialIdentity {
    /// The App itself, with its signed token.
    App,
    Installation(u64),
    /// The owner of a personal access token.
    Token,
}

impl CredentialIdentity {
    pub fn describe(&self) -> String {
        match self {
            CredentialIdentity::App => "app".to_owned(),
            CredentialIdentity::Installation(id) => format!("installation {id}"),
            CredentialIdentity::Token => "token".to_owned(),
        }
    }
}

/// Permissions of an installation's token: as few as the request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Purpose {
    Runners,
    Jobs,
}

impl Purpose {
    /// The permissions that are requested; `None` requests all that the installation has.
    pub fn permissions(self, scope: &Scope) -> Option<(&'static str, &'static str)> {
        match self {
            Purpose::Runners => scope.runner_permission().map(|name| (name, "write")),
            Purpose::Jobs => Some(("actions", "read")),
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct InstallationToken {
    pub token: SecretString,
    pub made_at: Timestamp,
    pub expires_at: Timestamp,
    /// Distinguishes it from its replacement.
    pub number: u64,
}

impl InstallationToken {
    pub fn usable(&self, now: Timestamp) -> bool {
        self.expires_at.duration_since(now) > MARGIN
    }

    pub fn fresh(&self, now: Timestamp) -> bool {
        now.duration_since(self.made_at) < FRESH
    }
}

/// The identity of a token: tokens with other permissions are other tokens.
pub(super) type TokenKey = (u64, Option<(&'static str, &'static str)>);

/// One task renews a token at a time; the others wait for its result.
pub(super) type TokenSlot = Arc<tokio::sync::Mutex<Option<InstallationToken>>>;

/// What is known about installations, for the life of the process.
#[derive(Debug, Default)]
pub(super) struct InstallationCache {
    slots: Mutex<HashMap<TokenKey, TokenSlot>>,
    installations: Mutex<HashMap<Scope, u64>>,
    budgets: Mutex<HashMap<CredentialIdentity, Arc<RateLimiter>>>,
}

impl InstallationCache {
    pub fn slot(&self, key: TokenKey) -> TokenSlot {
        self.slots.lock().entry(key).or_default().clone()
    }

    pub fn installation(&self, scope: &Scope) -> Option<u64> {
        self.installations.lock().get(scope).copied()
    }

    pub fn learn_installation(&self, scope: &Scope, id: u64) {
        self.installations.lock().insert(scope.clone(), id);
    }

    /// An App that was reinstalled has another installation.
    pub fn forget_installation(&self, scope: &Scope) {
        self.installations.lock().remove(scope);
    }

    pub fn budget(&self, who: &CredentialIdentity) -> Arc<RateLimiter> {
        self.budgets.lock().entry(who.clone()).or_default().clone()
    }

    pub fn budgets(&self) -> Vec<(CredentialIdentity, Arc<RateLimiter>)> {
        let budgets = self.budgets.lock();
        let mut all: Vec<_> = budgets.iter().map(|(who, budget)| (who.clone(), budget.clone())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }
}
