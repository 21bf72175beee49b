//! Requests to the REST API that are repeated while the service is away, until their time is over.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    client::{self, ApiClient},
    platform::clock,
};

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

pub(super) struct RetryingClient {
    pub client: ApiClient,
    timeout: Duration,
    deadline: Instant,
}

impl RetryingClient {
    /// The time begins now.
    pub fn new(client: ApiClient, timeout: Duration) -> Self {
        Self { client, timeout, deadline: clock::monotonic() + timeout }
    }

    /// The same client, with so much time from now on.
    pub fn with_time(&self, timeout: Duration) -> Self {
        Self::new(self.client.clone(), timeout)
    }

    /// Repeats what may succeed in a moment.
    pub async fn retry<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, client::Error>
    where
        F: Future<Output = Result<T, client::Error>>,
    {
        let mut retry = RetryPause::default();
        loop {
            match self.once(attempt()).await {
                Ok(value) => return Ok(value),
                Err(error) => self.pause(&mut retry, error).await?,
            }
        }
    }

    /// One attempt, within the time.
    pub async fn once<T>(&self, attempt: impl Future<Output = Result<T, client::Error>>) -> Result<T, client::Error> {
        timeout_at(self.deadline, attempt).await.unwrap_or_else(|_| Err(self.out_of_time()))
    }

    /// Waits before a repetition; the error, if there is no point in one or no time for it.
    pub async fn pause(&self, retry: &mut RetryPause, error: client::Error) -> Result<(), client::Error> {
        let pause = retry.next();
        if !may_pass(&error) || clock::monotonic() + pause >= self.deadline {
            return Err(error);
        }
        sleep(pause).await;
        Ok(())
    }

    fn out_of_time(&self) -> client::Error {
        client::Error::Unreachable(format!(
            "no answer from Mayfly at {} within {} s",
            self.client.service_name(),
            self.timeout.as_secs()
        ))
    }
}

/// Growing pauses between repetitions.
#[derive(Debug, Default)]
pub(super) struct RetryPause {
    last: Duration,
}

impl RetryPause {
    pub fn next(&mut self) -> Duration {
        self.last = (self.last * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        self.last
    }
}

/// Whether the same request may succeed in a moment.
pub(super) fn may_pass(error: &client::Error) -> bool {
    error.passes() || matches!(error, client::Error::Problem(problem, _) if problem.retryable)
}
