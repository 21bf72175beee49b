//! What GARM's token for an instance says of itself. It is GARM's secret to verify; here it is only read.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;

use super::failure::GarmFailure;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct InstanceTokenClaims {
    /// When it expires, in seconds since 1970.
    pub exp: i64,
    /// Grows with every creation of the same name.
    #[serde(default)]
    pub create_attempt: u32,
}

impl InstanceTokenClaims {
    pub fn of(token: &str) -> Result<Self, GarmFailure> {
        let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        claims.and_then(|claims| serde_json::from_slice(&claims).ok()).ok_or_else(|| {
            GarmFailure::Failed(
                "instance-token: expected a JSON Web Token that says when it expires (`exp`)".to_owned(),
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_when_it_expires_or_is_refused_without_being_shown() {
        let token = |claims: &str| format!("header.{}.signature", URL_SAFE_NO_PAD.encode(claims));
        let claims = InstanceTokenClaims::of(&token(r#"{"exp": 12, "create_attempt": 3, "name": "x"}"#)).unwrap();
        assert_eq!(claims, InstanceTokenClaims { exp: 12, create_attempt: 3 });
        assert_eq!(InstanceTokenClaims::of(&token(r#"{"exp": 12}"#)).unwrap().create_attempt, 0);
        for bad in ["hush", "", "hush.hush.hush", &token("{}"), &token("[]")] {
            assert!(!InstanceTokenClaims::of(bad).unwrap_err().to_string().contains("hush"), "{bad}");
        }
    }
}
