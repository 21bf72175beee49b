//! GitHub runners of vms.
//!
//! ```text
//! register          registers a runner just in time, when its guest is about to be provisioned
//! runner_watch      polls the runner of a live vm and turns its state into events of the vm
//! removal           removes a runner from GitHub before its guest is destroyed
//! orphaned_runners  removes runners whose vm, or whose attempt, has ended
//! reach             whether GitHub can be reached, for each scope
//! away              pauses budgets that wait for GitHub while it cannot be reached
//! ```
//!
//! Mayfly touches only the runners at GitHub that have a row in `github_runners`. The row is written before GitHub is
//! asked to register the runner, and is deleted only after GitHub has confirmed that the runner is gone. So each of
//! these modules can be interrupted at any moment, and continues from the row.

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
    away::GitHubAway,
    orphaned_runners::OrphanedRunners,
    reach::Reach,
    register::Registrar,
    removal::{Removal, RunnerRemoval, deregistered},
    runner_watch::RunnerWatch,
};
