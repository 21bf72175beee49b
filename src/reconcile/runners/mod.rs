//! Runners of vms at CI servers.
//!
//! ```text
//! register          registers a runner just in time, when its guest is about to be provisioned
//! runner_watch      polls the runner of a live vm and turns its state into events of the vm
//! removal           removes a runner from its server before its guest is destroyed
//! orphaned_runners  removes runners whose vm, or whose attempt, has ended
//! reach             whether a server can be reached, for each scope
//! away              pauses budgets that wait for a server while it cannot be reached
//! ```
//!
//! Mayfly touches only the runners that have a row in `runners`. The row is written before the server is asked to
//! register the runner, and is deleted only after the server has confirmed that the runner is gone. So each of these
//! modules can be interrupted at any moment, and continues from the row.

mod away;
mod orphaned_runners;
mod pace;
mod reach;
mod record;
mod register;
mod removal;
mod runner_watch;

pub use pace::Pace;
pub(super) use {
    away::ServersAway,
    orphaned_runners::OrphanedRunners,
    reach::Reach,
    register::Registrar,
    removal::{Removal, RunnerRemoval, deregistered},
    runner_watch::RunnerWatch,
};
