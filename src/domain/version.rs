//! Versions of templates: what names point at and pointed at, what is kept and why, and what was found to be damaged.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a name points at, or pointed at before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub digest: String,
    /// When the name was pointed there. `None`: it was before that was written down.
    pub since: Option<Timestamp>,
    pub why: Option<String>,
}

/// A name that was pointed at a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub name: String,
    /// `None`: the name is new.
    pub from: Option<String>,
    pub to: String,
    pub why: String,
}

impl Moved {
    pub fn changed(&self) -> bool {
        self.from.as_deref() != Some(self.to.as_str())
    }
}

/// Keeps a version from being pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    pub why: String,
    pub at: Timestamp,
}

/// What is known of a version beside its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// All names that point at it.
    pub names: Vec<String>,
    /// Since when the name that was asked for points at it, and why.
    pub since: Option<Timestamp>,
    pub why: Option<String>,
    /// What the name that was asked for pointed at before and is still here, newest first.
    pub previous: Vec<Target>,
    pub pin: Option<Pin>,
    /// When a vm was last made from it, or when it came.
    pub last_used_at: Option<Timestamp>,
    /// When every byte of it was last read and found to be as it should.
    pub verified_at: Option<Timestamp>,
    pub damage: Option<Damage>,
}

/// What reading every byte found, where that was not what it should be. No vm is made from such a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    pub at: Timestamp,
    pub faults: Vec<FileFault>,
}

/// A part of a file that is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileFault {
    /// Its name in the template.
    pub file: String,
    /// The first byte of the part whose digest is known and differs.
    pub offset: u64,
    pub bytes: u64,
    pub what: String,
}
