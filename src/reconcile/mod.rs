//! The loops of the service. Each runs in the background and works from stored state; `service` writes what they act
//! on.
//!
//! ```text
//! ledger ──change──▶ vms        one task per live vm: runs the step of its state, applies the resulting event
//!        ──change──▶ placement  gives free slots to queued vms, oldest first
//!        ──change──▶ jobs       turns webhooks and polls into jobs, and creates vms for jobs
//!        ──change──▶ pulls      one task per live pull; watches tags; tests new versions
//! timer  ─────────▶ sweep (compares instances with rows) · retention · host (drivers) · presence (heartbeat)
//! CI servers ────▶ runners    polls runners · removes orphaned runners · observes whether servers can be reached
//! ```
//!
//! Every step is idempotent and depends only on the row, so there is no recovery code: a restart starts the same
//! tasks on the same rows. The step of a vm whose state changed is cancelled; the next step continues from what the
//! cancelled step has done.

mod failure;
mod host;
pub mod jobs;
mod network_section;
mod placement;
mod presence;
pub mod pulls;
mod reconciler;
mod retention;
mod runners;
mod section;
mod settings;
mod sweep;
mod token_uses;
mod vms;

pub use jobs::JobLoops;
pub use network_section::{NetworkFault, NetworkSection};
pub use presence::last_beat;
pub use pulls::PullLoops;
pub use reconciler::Reconciler;
pub use runners::Pace;
pub use section::RetentionSection;
pub use settings::Settings;
