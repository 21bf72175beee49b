//! Jobs of GitHub's: updated by their sources, bound to the vm whose runner has them, and given vms.
//!
//! ```text
//! webhooks ─┐
//! poll ─────┼─ update ─▶ updates  one job, never backwards; its vm is told
//! …        ─┘             │
//!                         ▼
//!                       demand    per pool: as many vms without a job as there are jobs without a vm
//! ```
//!
//! Everything rests on rows, and each step may be done twice: a restart does the same things again.

mod demand;
mod loops;
mod poll;
mod settings;
mod source;
mod updates;
mod webhooks;

pub use self::{loops::JobLoops, settings::Settings};
