//! Versions of templates: what names point at and pointed at, what is kept and why, and what was found to be damaged.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// What a name points at, or pointed at before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasTarget {
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
pub struct VersionStatus {
    /// All names that point at it.
    pub names: Vec<String>,
    /// Since when the name that was asked for points at it, and why.
    pub since: Option<Timestamp>,
    pub why: Option<String>,
    /// What the name that was asked for pointed at before and is still here, newest first.
    pub previous: Vec<AliasTarget>,
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

/// What may be pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneRequest {
    /// Say what would be removed, and remove nothing.
    pub dry_run: bool,
    /// Only what was not used for so long, in seconds.
    pub older_than_seconds: u64,
    /// How many of the versions that a name pointed at before are kept for it.
    pub keep_previous: usize,
    /// Only as much as is needed to come down to this size, all together.
    pub max_bytes: Option<u64>,
    /// Interrupted pulls, too, if nobody has gone on with them for so long, in seconds.
    pub partial_older_than_seconds: Option<u64>,
}

impl Default for PruneRequest {
    fn default() -> Self {
        Self {
            dry_run: false,
            older_than_seconds: 0,
            keep_previous: 1,
            max_bytes: None,
            partial_older_than_seconds: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum HeldKind {
    /// A version of a template.
    Template,
    /// An image that was not pulled to its end; its digest is that of the image.
    PartialPull,
}

/// Something in the catalog that takes space, and why it goes or stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionUsage {
    pub kind: HeldKind,
    pub digest: String,
    /// That point at it, or pointed at it before.
    pub names: Vec<String>,
    /// On disk. What it shares with other files is in it, so this is the most that removing it can free.
    pub bytes: u64,
    pub last_used_at: Timestamp,
    pub why: String,
}

/// What was pruned, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pruned {
    pub dry_run: bool,
    pub removed: Vec<VersionUsage>,
    pub kept: Vec<VersionUsage>,
    /// Of all that was removed.
    pub freed_bytes: u64,
    /// Of all templates and pulls, before.
    pub total_bytes: u64,
    /// Free on the file system, after.
    pub available_bytes: u64,
}

/// What reading every byte of a version found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub name: String,
    pub digest: String,
    /// Of all its files.
    pub bytes: u64,
    /// Of these, what is on disk and was read; the rest are holes, which are zeros.
    pub bytes_read: u64,
    pub faults: Vec<FileFault>,
}
