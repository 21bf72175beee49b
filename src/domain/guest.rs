//! Who speaks in a guest.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The program of a guest that a vm's token was made for. Where both run as different users, the job cannot read the
/// wrapper's token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestRole {
    /// Supervises the job and reports how it ended.
    #[default]
    Wrapper,
    /// The job, and the hooks that its runner calls: may read and end the vm, and report what the job does.
    Job,
}

/// Who reported the result of a job, from the least to the most reliable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResultSource {
    /// The job itself, with the job's token.
    Job,
    /// A guest in which the job runs as the same user as the wrapper, or can become that user: either may have said it.
    #[default]
    Guest,
    /// The wrapper, as a user whose files and processes the job cannot touch.
    Wrapper,
}

impl ResultSource {
    /// For records: the value of records that were made before it was recorded.
    pub(super) fn is_default(&self) -> bool {
        *self == ResultSource::default()
    }
}

impl GuestRole {
    pub(super) fn is_default(&self) -> bool {
        *self == GuestRole::default()
    }
}
