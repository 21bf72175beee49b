//! Creates vms and pulls, for the API and for loops (a vm for a job, a test of a new version, a tag that moved). All
//! requests are validated, resolved and stored here, so the same rules apply to the API and to loops.
//!
//! The loops of `reconcile` act on the stored rows.

pub mod pulls;
mod section;
pub mod vms;

pub use pulls::PullAdmission;
pub use section::{PullsSection, QueueSection};
pub use vms::{VmAdmission, no_source};
