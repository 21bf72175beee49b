//! Waits for a service that is away: what a command follows goes on meanwhile, so the command does as well.

use std::time::Duration;

use tokio::time::Instant;

use super::{failure::CommandFailure, output};
use crate::platform::clock;

/// Pause after a request without an answer.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
/// How long to wait for a service that does not answer: long enough for a restart.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time the command says what it waits for.
const TOLD: Duration = Duration::from_secs(5);

#[derive(Default)]
pub(super) struct Patience {
    silent_since: Option<Instant>,
    told: bool,
}

impl Patience {
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// Pauses before another try. The failure, if it would not pass, or has lasted too long.
    pub async fn wait(&mut self, failure: CommandFailure) -> Result<(), CommandFailure> {
        if !failure.passes() {
            return Err(failure);
        }
        let silent = clock::elapsed(*self.silent_since.get_or_insert_with(clock::monotonic));
        if silent > PATIENCE {
            return Err(failure);
        }
        if silent > TOLD && !std::mem::replace(&mut self.told, true) {
            output::note(&format!("the service does not answer; waiting for it, at most {} s", PATIENCE.as_secs()));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}
