//! Whose name a call is made in, and the tokens that prove it.

use std::{collections::HashMap, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use secrecy::SecretString;

use super::{Scope, budget::RateLimiter};

/// Renewed when it has less than this left.
const MARGIN: SignedDuration = SignedDuration::from_mins(5);
/// Younger tokens may not be known to every part of GitHub yet.
const FRESH: SignedDuration = SignedDuration::from_secs(5);

/// Who is counted: limits and conditional answers are per identity.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum CredentialIdentity {
    /// The App itself, by its signed token.
    App,
    Installation(u64),
    /// The holder of a personal access token.
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

/// What an installation's token may do: as little as the call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Purpose {
    Runners,
    Jobs,
}

impl Purpose {
    /// The permissions that are asked for; `None` takes whatever the installation has.
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
    /// Tells it from the one that takes its place.
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

/// Which token: tokens with other permissions are other tokens.
pub(super) type TokenKey = (u64, Option<(&'static str, &'static str)>);

/// One at a time renews, the others wait for what it gets.
pub(super) type TokenSlot = Arc<tokio::sync::Mutex<Option<InstallationToken>>>;

/// What was learned of installations, for as long as the process lives.
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

    /// An App that was installed anew has another installation.
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
