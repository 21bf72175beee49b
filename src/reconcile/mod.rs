//! Every loop: what runs by itself, from stored state.
//!
//! ```text
//! ledger ──change──▶ vms        one task per live vm: load the row, run the step of its state, apply the event that came of it
//!        ──change──▶ placement  free slots to those who waited longest
//!        ──change──▶ jobs       webhooks and polls become jobs, and jobs get vms
//!        ──change──▶ pulls      one task per live pull; tags that are watched; tests of new versions
//! timer  ─────────▶ sweep (instances against rows) · retention · host (a look at the drivers) · presence (heartbeat)
//! GitHub ─────────▶ github     what its runners do · runners that outlived their vms · whether it answers
//! ```
//!
//! Every step is idempotent and rests on the row alone, so there is no recovery code: a restart starts the same tasks on the
//! same rows. A step whose vm moved on is dropped where it stands; what it had begun is found by the next step.

mod failure;
mod github;
mod host;
pub mod jobs;
mod placement;
mod presence;
pub mod pulls;
mod reconciler;
mod retention;
mod section;
mod settings;
mod sweep;
mod vms;

pub use github::Pace;
pub use jobs::JobLoops;
pub use pulls::PullLoops;
pub use reconciler::Reconciler;
pub use section::RetentionSection;
pub use settings::{RunnerSettings, Settings};
