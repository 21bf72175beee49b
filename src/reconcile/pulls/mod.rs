//! Carries out pulls in the background.
//!
//! ```text
//! row ──▶ loops    runs one task per live row, as for vms: a restart starts the same tasks on the same rows
//!           run      carries out one pull with the puller, and publishes its progress in memory
//!           canary   runs the test in a vm of the new version, then moves the name
//!           results  records that a pull is done or has failed, or schedules a retry
//!         watches  follows tags: a moved tag starts a pull
//! ```

mod canary;
mod loops;
mod results;
mod run;
mod settings;
mod watches;

pub use self::{loops::PullLoops, settings::Settings};
