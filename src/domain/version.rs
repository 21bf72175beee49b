//! Versions of templates: current and previous targets of names, what keeps a version, and its damage.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A version that a name points at, or pointed at before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AliasTarget {
    pub digest: String,
    /// When the name was pointed at it. `None`: before these times were recorded.
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

/// The state of a version, apart from its content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VersionStatus {
    /// All names that point at it.
    pub names: Vec<String>,
    /// Since when and why the requested name points at it.
    pub since: Option<Timestamp>,
    pub why: Option<String>,
    /// Previous versions of the requested name that are on this host, newest first.
    pub previous: Vec<AliasTarget>,
    pub pin: Option<Pin>,
    /// When a vm was last cloned from it, or when it was registered or pulled.
    pub last_used_at: Option<Timestamp>,
    /// When it was last verified without damage.
    pub verified_at: Option<Timestamp>,
    pub damage: Option<Damage>,
}

/// Damage that a verification found. No vm is made from such a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Damage {
    pub at: Timestamp,
    pub faults: Vec<FileFault>,
}

/// A part of a file that does not match its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileFault {
    /// Name of the file in the template.
    pub file: String,
    /// Offset of the part.
    pub offset: u64,
    pub bytes: u64,
    pub what: String,
}

/// What may be pruned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PruneRequest {
    /// Show what would be removed, and remove nothing.
    pub dry_run: bool,
    /// Only versions that were not used for this long, in seconds.
    pub older_than_seconds: u64,
    /// How many previous versions are kept for each name.
    pub keep_previous: usize,
    /// Remove only until all templates together are no larger than this.
    pub max_bytes: Option<u64>,
    /// Also interrupted pulls that were not continued for this long, in seconds.
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
    /// An interrupted pull; its digest is that of the image.
    PartialPull,
}

/// A version or interrupted pull in the catalog, and why it is removed or kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionUsage {
    pub kind: HeldKind,
    pub digest: String,
    /// Names that point at it, or pointed at it before.
    pub names: Vec<String>,
    /// Size on disk, including blocks that are shared with other files, so this is the most that removing it can
    /// free.
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
    /// Size of everything that was removed.
    pub freed_bytes: u64,
    /// Size of all templates and pulls before.
    pub total_bytes: u64,
    /// Free space on the file system afterwards.
    pub available_bytes: u64,
}

/// The result of verifying a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    pub name: String,
    pub digest: String,
    /// Of all its files.
    pub bytes: u64,
    /// Part of it that is on disk and was read; the rest are holes, which are zeros.
    pub bytes_read: u64,
    pub faults: Vec<FileFault>,
}
