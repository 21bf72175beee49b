//! Events of templates. They share the sequence and the stream with events of vms, but no row is computed from them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Code, PullId, VmId};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum TemplateEvent {
    /// Made from files on this host.
    Registered {
        digest: String,
    },
    PullStarted {
        pull: PullId,
        image: String,
    },
    /// The image is now a template of this host (or was one already).
    Pulled {
        pull: PullId,
        image: String,
        digest: String,
        /// Bytes downloaded from the registry.
        bytes: u64,
        seconds: u64,
    },
    PullFailed {
        pull: PullId,
        image: String,
        code: Code,
        detail: String,
    },
    PullCancelled {
        pull: PullId,
        image: String,
    },
    /// A name points at another template than before. `from` is missing for a new name, `to` for a deleted one.
    NameMoved {
        name: String,
        from: Option<String>,
        to: Option<String>,
        /// In one line.
        why: String,
    },
    /// The version was pinned.
    Pinned {
        digest: String,
        why: String,
    },
    Unpinned {
        digest: String,
    },
    /// Settings that the version sets itself were changed.
    SettingsChanged {
        digest: String,
    },
    Deleted {
        digest: String,
    },
    Pruned {
        digest: String,
        bytes: u64,
        why: String,
    },
    Verified {
        digest: String,
        /// Number of damaged parts of its files.
        faults: u32,
    },
    /// The new version did not pass its test, and the name stays where it was.
    CanaryFailed {
        pull: PullId,
        digest: String,
        vm: Option<VmId>,
        detail: String,
    },
    WatchSet {
        image: String,
        every_seconds: u32,
    },
    WatchRemoved {
        image: String,
    },
    /// The tag that a template follows points at another image than before.
    TagMoved {
        image: String,
        digest: String,
    },
    /// The tag that a template follows could not be checked. Recorded once for each cause, and not at every check.
    WatchFailed {
        image: String,
        code: Code,
        detail: String,
    },
}

impl TemplateEvent {
    /// The name in the event stream and in the database.
    pub fn kind(&self) -> &'static str {
        match self {
            TemplateEvent::Registered { .. } => "registered",
            TemplateEvent::PullStarted { .. } => "pull_started",
            TemplateEvent::Pulled { .. } => "pulled",
            TemplateEvent::PullFailed { .. } => "pull_failed",
            TemplateEvent::PullCancelled { .. } => "pull_cancelled",
            TemplateEvent::NameMoved { .. } => "name_moved",
            TemplateEvent::Pinned { .. } => "pinned",
            TemplateEvent::Unpinned { .. } => "unpinned",
            TemplateEvent::SettingsChanged { .. } => "settings_changed",
            TemplateEvent::Deleted { .. } => "deleted",
            TemplateEvent::Pruned { .. } => "pruned",
            TemplateEvent::Verified { .. } => "verified",
            TemplateEvent::CanaryFailed { .. } => "canary_failed",
            TemplateEvent::WatchSet { .. } => "watch_set",
            TemplateEvent::WatchRemoved { .. } => "watch_removed",
            TemplateEvent::TagMoved { .. } => "tag_moved",
            TemplateEvent::WatchFailed { .. } => "watch_failed",
        }
    }
}

/// An event as stored in the ledger.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedOfTemplate {
    /// Position among all events of this service, including those of vms.
    pub seq: i64,
    /// Name of the template, or its digest where it has no name.
    pub template: String,
    pub at: Timestamp,
    pub event: TemplateEvent,
}
