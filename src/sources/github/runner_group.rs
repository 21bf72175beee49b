//! Runner groups of an organisation or enterprise.

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Scope;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunnerGroup {
    pub id: u64,
    pub name: String,
    #[serde(default)]
    pub visibility: Option<String>,
    #[serde(default)]
    pub default: bool,
    #[serde(default)]
    pub inherited: Option<bool>,
    #[serde(default)]
    pub allows_public_repositories: Option<bool>,
}

/// The groups of each scope, and when they were listed.
pub(super) type RunnerGroupCache = Mutex<HashMap<Scope, (Timestamp, Vec<RunnerGroup>)>>;
