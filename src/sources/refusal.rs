//! What an unsuccessful answer means at every server.

use jiff::{SignedDuration, Timestamp};
use reqwest::StatusCode;
use serde_json::Value;

use super::error::{SourceError, SourceErrorKind};
use crate::domain::SourceKind;

/// Limit of a text of the server that is shown, in characters.
const SHOWN: usize = 200;

/// One line from the answer: `message`, else its beginning.
pub(super) fn said(body: &[u8]) -> String {
    let message = serde_json::from_slice::<Value>(body).ok().and_then(|v| Some(v["message"].as_str()?.to_owned()));
    let text = message.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN)]).into_owned());
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if line.is_empty() { "nothing".to_owned() } else { line }
}

/// An answer without a meaning of its own at this server. `what` is the purpose of the request, `said` is from the answer, and `pause`
/// is how long no request may be sent after too many of them, in seconds.
pub(super) fn meaning(
    kind: SourceKind,
    server: &str,
    what: &str,
    status: StatusCode,
    said: &str,
    (pause, now): (u32, Timestamp),
) -> SourceError {
    let error = |meaning, detail| SourceError::new(kind, meaning, detail);
    match status {
        StatusCode::TOO_MANY_REQUESTS => {
            let until = now + SignedDuration::from_secs(pause.into());
            error(
                SourceErrorKind::RateLimited { until },
                format!("{server} refuses requests until {until}; request: {what}"),
            )
        }
        // The request was received, and may have been carried out before the answer broke.
        s if s.is_server_error() || matches!(s, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY) => error(
            SourceErrorKind::Unavailable { sent: true },
            format!("{server} cannot be reached for {what}: {} {said}", s.as_u16()),
        ),
        s => error(SourceErrorKind::Refused, format!("{server} refuses {what} with {}: {said}", s.as_u16())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_one_short_line() {
        for (body, line) in [
            (r#"{"message":"token is required","url":"https://x"}"#, "token is required"),
            ("<html>\n502", "<html> 502"),
            ("", "nothing"),
        ] {
            assert_eq!(said(body.as_bytes()), line);
        }
        assert_eq!(said(&[b'y'; 9000]).len(), SHOWN);
    }
}
