//! Follows jobs of CI systems: applies updates from the feeds, binds jobs to the vm whose runner has them, and
//! creates vms for them.
//!
//! ```text
//! webhooks ─┐
//! poll ─────┼─ update ─▶ updates  applies an update to its job and to the vm of the job
//! …        ─┘             │
//!                         ▼
//!                       demand    creates and ends vms, so that each pool has as many free vms as queued jobs
//!                         plan    decides which: by counting, or by pairs where a vm is for one particular job
//! ```
//!
//! All state is in rows, and each step can be repeated: a restart repeats the same steps.

mod demand;
mod loops;
mod plan;
mod poll;
mod settings;
mod update_feed;
mod updates;
mod waiting;
mod webhooks;

pub use self::{loops::JobLoops, settings::Settings};
