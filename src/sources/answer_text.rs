//! What a server says in an unsuccessful answer.

use serde_json::Value;

/// Limit of a text of the server that is shown, in characters.
const SHOWN: usize = 200;

/// One line from the answer: `message`, else its beginning.
pub(super) fn said(body: &[u8]) -> String {
    let message = serde_json::from_slice::<Value>(body).ok().and_then(|v| Some(v["message"].as_str()?.to_owned()));
    let text = message.unwrap_or_else(|| String::from_utf8_lossy(&body[..body.len().min(4 * SHOWN)]).into_owned());
    let line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if line.is_empty() { "nothing".to_owned() } else { line }
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
