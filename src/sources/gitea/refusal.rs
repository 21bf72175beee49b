//! The meaning of an unsuccessful answer.

use jiff::Timestamp;
use reqwest::{StatusCode, header::HeaderMap};

use crate::{
    domain::SourceKind,
    platform::retry::retry_after,
    sources::{
        error::{SourceError, SourceErrorKind},
        refusal,
    },
};

/// The pause after a refusal for too many requests that names none, in seconds.
const USUAL_PAUSE: u32 = 60;

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
    let error = |kind, detail| SourceError::new(SourceKind::Gitea, kind, detail);
    match status {
        StatusCode::UNAUTHORIZED => error(
            SourceErrorKind::Refused,
            format!(
                "{server} does not accept the access token for {what}: {said}; make a new one and put it into the token file"
            ),
        ),
        StatusCode::FORBIDDEN => error(
            SourceErrorKind::Refused,
            format!(
                "{server} does not allow {what}: {said}; the token's user must be an owner, and the token must have the right to write"
            ),
        ),
        StatusCode::NOT_FOUND => error(
            SourceErrorKind::Refused,
            format!("{server} shows nothing of {what}: it does not exist, or the token's user may not see it"),
        ),
        s if s.is_redirection() => error(
            SourceErrorKind::Refused,
            format!(
                "{server} redirects {what} to another address: set `url` of the source to the address that a browser ends at"
            ),
        ),
        status => {
            let pause = retry_after(headers, now).unwrap_or(USUAL_PAUSE);
            refusal::meaning(SourceKind::Gitea, server, what, status, &said, (pause, now))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_meaning() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let headers: HeaderMap = [(reqwest::header::RETRY_AFTER, "30".parse().unwrap())].into_iter().collect();
        let kind = |status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            meaning("git.example.com", "the runners of acme", status, &headers, b"{}", now).kind
        };
        for refused in [301, 400, 401, 403, 404, 409, 422] {
            assert_eq!(kind(refused), SourceErrorKind::Refused, "{refused}");
        }
        for broken in [408, 500, 502, 503, 504] {
            assert_eq!(kind(broken), SourceErrorKind::Unavailable { sent: true }, "{broken}");
        }
        let until = "2026-01-01T00:00:30Z".parse().unwrap();
        assert_eq!(kind(429), SourceErrorKind::RateLimited { until });
    }
}
