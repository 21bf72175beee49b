//! The meaning of an unsuccessful answer.

use jiff::Timestamp;
use reqwest::{
    StatusCode,
    header::{HeaderMap, HeaderName},
};

use crate::{
    domain::SourceKind,
    platform::retry::retry_after,
    sources::{
        error::{SourceError, SourceErrorKind},
        refusal,
    },
};

/// The pause after a refusal for too many requests that names none, in seconds.
const USUAL_PAUSE: u32 = 1;
/// When the window of the limit ends, in seconds.
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// How long no request may be sent, in seconds.
fn pause(headers: &HeaderMap, now: Timestamp) -> u32 {
    let reset = || headers.get(RESET)?.to_str().ok()?.trim().parse().ok();
    retry_after(headers, now).or_else(reset).unwrap_or(USUAL_PAUSE)
}

/// `server` and `what` are for the message.
pub(super) fn meaning(
    server: &str,
    what: &str,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
    now: Timestamp,
) -> SourceError {
    let said = refusal::said(body);
    let error = |kind, detail| SourceError::new(SourceKind::Buildkite, kind, detail);
    match status {
        StatusCode::UNAUTHORIZED => error(
            SourceErrorKind::Refused,
            format!(
                "{server} does not accept the agent token for {what}: {said}; make a new one on the page of the cluster and put it \
                 into the token file"
            ),
        ),
        StatusCode::FORBIDDEN => error(
            SourceErrorKind::Refused,
            format!(
                "{server} does not allow {what}: {said}; the organisation may have too many stacks: deregister those that are not used"
            ),
        ),
        StatusCode::NOT_FOUND => error(
            SourceErrorKind::Refused,
            format!(
                "{server} knows nothing of {what}: {said}; check `queue`, and that the token is one of its cluster"
            ),
        ),
        status => {
            let pause = pause(headers, now);
            refusal::meaning(SourceKind::Buildkite, server, what, status, &said, (pause, now))
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn each_answer_has_its_meaning() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let kind = |status: u16, headers: &HeaderMap| {
            let status = StatusCode::from_u16(status).unwrap();
            meaning("agent.buildkite.com", "the scheduled jobs", status, headers, b"{}", now).kind
        };
        let none = HeaderMap::new();
        for refused in [301, 400, 401, 403, 404, 409, 422] {
            assert_eq!(kind(refused, &none), SourceErrorKind::Refused, "{refused}");
        }
        for broken in [408, 500, 502, 503, 504] {
            assert_eq!(kind(broken, &none), SourceErrorKind::Unavailable { sent: true }, "{broken}");
        }
        let until = |seconds: i64| SourceErrorKind::RateLimited { until: now + SignedDuration::from_secs(seconds) };
        let headers = |name: HeaderName| HeaderMap::from_iter([(name, "30".parse().unwrap())]);
        assert_eq!(kind(429, &headers(RESET)), until(30));
        assert_eq!(kind(429, &headers(reqwest::header::RETRY_AFTER)), until(30));
        assert_eq!(kind(429, &none), until(1));
    }
}
