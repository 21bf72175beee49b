//! The meaning of an unsuccessful answer.

use reqwest::{StatusCode, header::HeaderMap};
use serde_json::Value;

use super::error::GitHubError;

/// Limit of an unknown text that is shown, in bytes.
const SHOWN: usize = 200;

/// One line from GitHub's refusal: `message`, and the entries of `errors`.
pub(super) fn said(body: &[u8]) -> String {
    let Ok(value) = serde_json::from_slice::<Value>(body) else { return start_of(body) };
    let Some(message) = value["message"].as_str() else { return start_of(body) };
    let mut text = message.to_owned();
    for error in value["errors"].as_array().into_iter().flatten().take(5) {
        let part = match error {
            Value::String(part) => part.clone(),
            Value::Object(_) => match error["message"].as_str() {
                Some(message) => message.to_owned(),
                None => format!("{} {}", error["field"].as_str().unwrap_or("?"), error["code"].as_str().unwrap_or("?")),
            },
            _ => continue,
        };
        text.push_str("; ");
        text.push_str(&part);
    }
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(2 * SHOWN).collect()
}

/// For people, who may recognise it: a proxy's page, another service.
pub(super) fn start_of(body: &[u8]) -> String {
    if body.is_empty() {
        return "nothing".to_owned();
    }
    let start = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
    start.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// All refusals that are not about limits, as far as they mean the same for every request.
pub(super) fn meaning(server: &str, what: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> GitHubError {
    let (server, what) = (server.to_owned(), what.to_owned());
    let text =
        |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()).map(str::to_owned);
    let accepted = || text("x-accepted-github-permissions").or_else(|| text("x-accepted-oauth-scopes"));
    let said = said(body);
    match status {
        StatusCode::UNAUTHORIZED => GitHubError::BadCredentials { server, what, said },
        StatusCode::FORBIDDEN => GitHubError::MissingPermission { server, what, accepted: accepted(), said },
        StatusCode::NOT_FOUND => GitHubError::NotVisible { server, what, accepted: accepted() },
        // The request was received, and may have been carried out before the answer broke.
        s if s.is_server_error() || matches!(s, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY) => {
            GitHubError::Unavailable { server, what, cause: format!("{} {said}", s.as_u16()), sent: true }
        }
        s => GitHubError::Refused { server, what, status: s.as_u16(), said },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_one_short_line() {
        for (body, line) in [
            (r#"{"message":"Bad credentials","documentation_url":"https://x","status":"401"}"#, "Bad credentials"),
            (r#"{"message":"Validation Failed","errors":["a","b"]}"#, "Validation Failed; a; b"),
            (
                r#"{"message":"No","errors":[{"resource":"R","field":"name","code":"missing"},{"message":"m"},7]}"#,
                "No; name missing; m",
            ),
            ("<html>\n502", "<html> 502"),
            ("{}", "{}"),
            ("", "nothing"),
        ] {
            assert_eq!(said(body.as_bytes()), line);
        }
        assert_eq!(start_of(&[b'x'; 1000]).len(), 200);
        assert!(said(format!("{{\"message\":\"{}\"}}", "y".repeat(9000)).as_bytes()).len() <= 400);
    }

    #[test]
    fn a_refusal_names_what_would_have_been_enough() {
        let mut headers = HeaderMap::new();
        let text = |status: u16, headers: &HeaderMap| {
            let status = StatusCode::from_u16(status).unwrap();
            meaning("api.github.com", "the runners of acme", status, headers, br#"{"message":"no"}"#).to_string()
        };
        assert!(text(404, &headers).contains("these credentials may not see it"));
        headers.insert("x-accepted-oauth-scopes", "".parse().unwrap());
        headers.insert("x-accepted-github-permissions", "organization_self_hosted_runners=write".parse().unwrap());
        for status in [403, 404] {
            let said = text(status, &headers);
            assert!(said.contains("(needs organization_self_hosted_runners=write)"), "{said}");
        }
        assert!(text(401, &headers).contains("rejects the credentials of the request for the runners of acme: no"));
        assert!(text(503, &headers).contains("cannot be reached"));
        assert!(text(422, &headers).contains("with 422: no"));
    }
}
