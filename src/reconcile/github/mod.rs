//! GitHub's part in a vm's life.
//!
//! ```text
//! register   a runner is made known just in time: while its guest is about to be given it
//! watch      what GitHub says of a live vm's runner becomes facts of the vm
//! leave      a runner is taken away at GitHub before its guest is destroyed
//! ghosts     runners that outlived their vm, or its attempt, are taken away as well
//! reach      while GitHub is away, the budgets stand still that wait for it
//! ```
//!
//! What is ours at GitHub is what has a row in `github_runners`, and nothing else there is ever touched. A row is written
//! before GitHub is asked and goes when GitHub has said that the runner is gone, so each of these may die at any moment and
//! is taken up again from the row.

use std::{sync::Arc, time::Duration};

use super::{Reconciler, steps::Failure, steps::FailureKind};
use crate::{
    domain::{Code, Event, State, Vm, github},
    sources::github::GitHubError,
    store::{Expect, StoreError},
};

mod ghosts;
mod leave;
mod reach;
mod register;
mod watch;

pub use reach::Reach;

/// How often GitHub is asked.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// For a runner that is about to come or to go.
    pub soon: Duration,
    /// For one that waits or works.
    pub calm: Duration,
    /// After an answer that was no use; doubles each time.
    pub first_retry: Duration,
    pub longest_retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            soon: Duration::from_secs(5),
            calm: Duration::from_secs(30),
            first_retry: Duration::from_secs(2),
            longest_retry: Duration::from_secs(60),
        }
    }
}

impl Pace {
    fn longer(&self, pause: Duration) -> Duration {
        (pause * 2).min(self.longest_retry)
    }
}

fn runner_name(vm: &Vm) -> String {
    github::runner_name(&vm.draft.name, vm.id(), vm.attempt)
}

/// What it means for a step that GitHub did not do as asked.
fn failure(error: &GitHubError) -> Failure {
    // What came in the place of an answer was not GitHub's, and may be gone in a moment.
    if error.passes() || matches!(error, GitHubError::Unparsable { .. }) {
        Failure::new(FailureKind::Retry, Code::GitHubUnavailable, error.to_string())
    } else {
        Failure::new(FailureKind::Permanent, Code::GitHubRefused, error.to_string())
    }
}

impl Reconciler {
    /// Records what GitHub said of this attempt's runner, however far the vm moved meanwhile. `None`: that attempt is over.
    async fn tell(&self, vm: &Vm, event: Event) -> Result<Option<Arc<Vm>>, StoreError> {
        let mut generation = vm.generation;
        loop {
            let expect = Expect::Generation(generation);
            let applied = self.ledger.apply(vm.id(), expect, event.clone(), self.clock.now()).await?;
            if applied.as_expected {
                return Ok(Some(applied.vm));
            }
            let now = applied.vm;
            if now.attempt != vm.attempt || matches!(now.state, State::Queued | State::Deleted) {
                return Ok(None);
            }
            generation = now.generation;
        }
    }
}
