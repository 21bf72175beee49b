//! Why a request has no answer that can be used.

use serde::Deserialize;

use crate::domain::Code;

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
    /// All of it in one line, for the logs of other programs.
    pub fn into_sentence(self) -> String {
        let text = match self {
            Error::Usage(text) | Error::NoToken(text) | Error::Unreachable(text) | Error::Other(text) => text,
            Error::Problem(problem, hint) => problem.sentence(hint),
        };
        text.replace(|c: char| c.is_control(), " ")
    }

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

impl ApiProblem {
    /// The problem with its remedy, or with the hint in place of it.
    fn sentence(&self, hint: Option<String>) -> String {
        let mut text = self.title.clone();
        if let Some(detail) = self.detail.as_deref().filter(|detail| !detail.is_empty()) {
            text = format!("{text}: {detail}");
        }
        for field in &self.errors {
            text = format!("{text}; {}: {}", field.pointer.trim_start_matches('/'), field.detail);
        }
        let remedy = Code::ALL.iter().find(|code| code.slug() == self.code).map(|code| code.remedy().to_owned());
        if let Some(hint) = hint.or(remedy.filter(|_| self.errors.is_empty())).filter(|hint| !hint.is_empty()) {
            text = format!("{text}; {hint}");
        }
        if self.code.is_empty() { text } else { format!("{text} [{}]", self.code) }
    }
}
