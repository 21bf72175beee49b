//! Which failures of a registry or of S3 are retried, and when.

use std::time::Duration;

use jiff::{Timestamp, fmt::rfc2822};
use reqwest::{
    StatusCode,
    header::{HeaderMap, RETRY_AFTER},
};

use super::error::{RegistryError, describe};
use crate::platform::{clock, retry::Retry};

/// For transfers of blobs and objects: long enough for a server's restart.
pub const TRANSFERS: Retry =
    Retry { attempts: 6, first_pause: Duration::from_secs(1), longest_pause: Duration::from_secs(20) };

/// A server that asks for a longer pause than this is not retried.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// A failed attempt.
#[derive(Debug)]
pub(super) struct AttemptFailure {
    pub error: RegistryError,
    pub verdict: RetryVerdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RetryVerdict {
    Final,
    /// May be retried, but not before this.
    Again(Duration),
}

impl AttemptFailure {
    pub fn last(error: RegistryError) -> AttemptFailure {
        AttemptFailure { error, verdict: RetryVerdict::Final }
    }

    pub fn again(error: RegistryError) -> AttemptFailure {
        AttemptFailure { error, verdict: RetryVerdict::Again(Duration::ZERO) }
    }

    /// Of a request that got no answer.
    pub fn unanswered(registry: &str, what: &str, error: reqwest::Error) -> AttemptFailure {
        match describe(registry, what, error) {
            // It is not in reach, and will not be.
            error @ RegistryError::Settings { .. } => AttemptFailure::last(error),
            error => AttemptFailure::again(error),
        }
    }

    /// Waits for the next attempt, or returns the error if there is none.
    pub async fn pause(self, pauses: &mut impl Iterator<Item = Duration>) -> Result<(), RegistryError> {
        let RetryVerdict::Again(at_least) = self.verdict else { return Err(self.error) };
        if at_least > LONGEST_PAUSE {
            return Err(self.error);
        }
        let Some(pause) = pauses.next() else { return Err(self.error) };
        let pause = pause.max(at_least);
        tracing::warn!(error = %self.error, pause_ms = pause.as_millis() as u64, "retrying a request to a registry");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Whether a status allows another attempt.
pub(super) fn verdict(status: StatusCode, headers: &HeaderMap) -> RetryVerdict {
    let may_pass = status.is_server_error()
        || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY);
    if !may_pass || status == StatusCode::NOT_IMPLEMENTED {
        return RetryVerdict::Final;
    }
    let after = headers.get(RETRY_AFTER).and_then(|v| v.to_str().ok()).and_then(|text| retry_after(text, clock::now()));
    RetryVerdict::Again(after.unwrap_or(Duration::ZERO))
}

/// Seconds, or a date.
fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "1994-11-06T08:49:00Z".parse().unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT", now), Some(Duration::from_secs(37)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:48:37 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
    }

    #[test]
    fn temporary_failures_are_retried() {
        let mut headers = HeaderMap::new();
        for (status, again) in
            [(429, true), (500, true), (503, true), (408, true), (501, false), (404, false), (403, false)]
        {
            let verdict = verdict(StatusCode::from_u16(status).unwrap(), &headers);
            assert_eq!(verdict != RetryVerdict::Final, again, "{status}");
        }
        headers.insert(RETRY_AFTER, "7".parse().unwrap());
        assert_eq!(verdict(StatusCode::TOO_MANY_REQUESTS, &headers), RetryVerdict::Again(Duration::from_secs(7)));
    }
}
