//! GitHub's part in a vm's life.
//!
//! ```text
//! register          a runner is registered just in time: when its guest is about to get it
//! runner_watch      what GitHub says of a live vm's runner becomes events of the vm
//! removal           a runner is removed at GitHub before its guest is destroyed
//! orphaned_runners  runners that outlived their vm, or its attempt, are removed as well
//! reach             whether GitHub answers, scope by scope
//! away              while GitHub does not answer, the budgets that wait for it stand still
//! ```
//!
//! What is ours at GitHub is what has a row in `github_runners`, and nothing else there is ever touched. A row is written
//! before GitHub is asked and goes when GitHub has said that the runner is gone, so each of these may die at any moment and
//! is taken up again from the row.

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
