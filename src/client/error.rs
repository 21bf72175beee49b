//! Why a request has no answer that can be used.

use serde::Deserialize;

#[derive(Debug)]
pub enum Error {
    /// The options or their files are not usable.
    Usage(String),
    /// The service answered with a problem. With a hint if the token was refused.
    Problem(Box<ApiProblem>, Option<String>),
    /// No token was given, and none may be taken from elsewhere.
    NoToken(String),
    /// The service did not answer.
    Unreachable(String),
    Other(String),
}

/// RFC 9457, with what Mayfly adds.
#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(default)]
pub struct ApiProblem {
    #[serde(rename = "type")]
    pub kind: String,
    pub title: String,
    pub status: u16,
    pub detail: Option<String>,
    pub code: String,
    pub request_id: Option<String>,
    pub retryable: bool,
    pub errors: Vec<FieldProblem>,
}

#[derive(Clone, Debug, Default, Deserialize, serde::Serialize)]
#[serde(default)]
pub struct FieldProblem {
    pub pointer: String,
    pub detail: String,
}

impl Error {
    /// Whether the service is away, and the same request may succeed in a moment.
    pub fn passes(&self) -> bool {
        match self {
            Error::Unreachable(_) => true,
            // 502 and 504 are a proxy's way of saying that the service is away.
            Error::Problem(problem, _) => matches!(problem.status, 502..=504),
            _ => false,
        }
    }
}
