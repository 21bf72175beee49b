//! Retries requests to a registry as far as their failures allow.

use std::time::Duration;

use backon::ExponentialBackoff;

use super::{error::RegistryError, verdict::Prospect};
use crate::platform::retry::Retry;

/// For transfers of blobs and objects: long enough for a server's restart.
pub const TRANSFERS: Retry =
    Retry { attempts: 6, first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(20) };

/// A server that asks for a longer pause than this is not waited for here: the error says how long, and who started the
/// transfer may wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// The attempts at one request.
pub(super) struct Attempts {
    retry: Retry,
    pauses: ExponentialBackoff,
    /// An answer that is believed when it comes twice has come once.
    doubted: bool,
}

impl Attempts {
    pub fn of(retry: Retry) -> Attempts {
        Attempts { retry, pauses: retry.pauses(), doubted: false }
    }

    /// After progress: failures are counted again.
    pub fn restart(&mut self) {
        *self = Attempts::of(self.retry);
    }

    /// Waits for the next attempt, or returns the error if there is none.
    pub async fn pause_after(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        let at_least = match error.verdict().prospect {
            Prospect::Final => return Err(error),
            Prospect::Repeat if self.doubted => return Err(error),
            Prospect::Repeat => {
                self.doubted = true;
                Duration::ZERO
            }
            Prospect::Temporary(after) if after > LONGEST_PAUSE => return Err(error),
            Prospect::Temporary(after) => after,
        };
        let Some(pause) = self.pauses.next() else { return Err(error) };
        let pause = pause.max(at_least);
        tracing::warn!(%error, pause_ms = pause.as_millis() as u64, "retrying a request to a registry");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attempts() -> Attempts {
        let pause = Duration::from_millis(1);
        Attempts::of(Retry { attempts: 4, first_pause: pause, longest_pause: pause })
    }

    async fn made(error: RegistryError) -> usize {
        let mut attempts = attempts();
        let mut made = 1;
        while attempts.pause_after(error.clone()).await.is_ok() {
            made += 1;
        }
        made
    }

    #[tokio::test]
    async fn a_failure_is_retried_as_its_verdict_says() {
        let (registry, what) = ("r".to_owned(), "it".to_owned());
        let refused = |status, retry_after| RegistryError::Refused {
            registry: registry.clone(),
            status,
            what: what.clone(),
            said: String::new(),
            retry_after,
        };
        assert_eq!(made(refused(503, None)).await, 4);
        assert_eq!(made(refused(400, None)).await, 1);
        assert_eq!(made(refused(429, Some(301))).await, 1);
        assert_eq!(made(RegistryError::NotFound { registry: registry.clone(), what: what.clone() }).await, 2);
        let mut attempts = attempts();
        let found = "another digest".to_owned();
        let doubted = RegistryError::Answer { registry: registry.clone(), what: what.clone(), found };
        attempts.pause_after(doubted.clone()).await.unwrap();
        attempts.restart();
        attempts.pause_after(doubted.clone()).await.unwrap();
        attempts.pause_after(doubted).await.unwrap_err();
    }
}
