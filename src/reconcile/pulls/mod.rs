//! Pulls, done in the background.
//!
//! ```text
//! row ──▶ loops    one task per live row, as for vms: a restart starts the same tasks on the same rows
//!           run    one pull: the puller does the work; its progress is published in memory
//!           canary a vm of the new version runs its test, then the name moves
//!           results  done, failed, or tried again later
//!         watches  tags that are followed: one that moved starts a pull
//! ```

mod canary;
mod loops;
mod results;
mod run;
mod settings;
mod watches;

pub use self::{loops::PullLoops, settings::Settings};
