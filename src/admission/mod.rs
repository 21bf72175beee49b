//! What enters the service: vms and pulls. Requests come from the API and from loops (a vm for a job, a test of a new version, a
//! tag that moved); all of them are checked, resolved and stored here, so that they cannot differ.
//!
//! Nothing is done about what was stored: the loops of `reconcile` read the rows.

pub mod pulls;
mod section;
pub mod vms;

pub use pulls::PullAdmission;
pub use section::{PullsSection, QueueSection};
pub use vms::VmAdmission;
