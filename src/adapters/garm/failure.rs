//! Why an operation failed. GARM stores the text as the instance's fault and shows it to administrators.

use std::fmt;

use crate::{
    client::{self, ApiProblem},
    domain::Code,
};

#[derive(Debug)]
pub(super) enum GarmFailure {
    /// Success for GARM when it deletes.
    NotFound(String),
    Failed(String),
}

impl GarmFailure {
    pub fn exit_code(&self) -> u8 {
        match self {
            GarmFailure::NotFound(_) => 30,
            GarmFailure::Failed(_) => 1,
        }
    }
}

impl fmt::Display for GarmFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // One line: GARM's log and its database show it as one text.
            GarmFailure::NotFound(text) | GarmFailure::Failed(text) => {
                f.write_str(&text.replace(|c: char| c.is_control(), " "))
            }
        }
    }
}

impl From<client::Error> for GarmFailure {
    fn from(error: client::Error) -> Self {
        GarmFailure::Failed(match error {
            client::Error::Usage(text)
            | client::Error::NoToken(text)
            | client::Error::Unreachable(text)
            | client::Error::Other(text) => text,
            client::Error::Problem(problem, hint) => sentence(&problem, hint),
        })
    }
}

/// A problem of the service in one sentence.
fn sentence(problem: &ApiProblem, hint: Option<String>) -> String {
    let mut text = problem.title.clone();
    if let Some(detail) = problem.detail.as_deref().filter(|detail| !detail.is_empty()) {
        text = format!("{text}: {detail}");
    }
    for field in &problem.errors {
        text = format!("{text}; {}: {}", field.pointer.trim_start_matches('/'), field.detail);
    }
    let remedy = Code::ALL.iter().find(|code| code.slug() == problem.code).map(|code| code.remedy().to_owned());
    if let Some(hint) = hint.or(remedy.filter(|_| problem.errors.is_empty())).filter(|hint| !hint.is_empty()) {
        text = format!("{text}; {hint}");
    }
    if problem.code.is_empty() { text } else { format!("{text} [{}]", problem.code) }
}
