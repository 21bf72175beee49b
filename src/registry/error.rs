//! Why a registry did not do what was requested.

use super::credentials;
use crate::platform::error_chain;

/// The error of a registry. Never contains a URL, because redirect targets are signed with secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("the settings for {registry} cannot be used: {what}")]
    Settings { registry: String, what: String },
    #[error(transparent)]
    Credentials(#[from] credentials::CredentialError),
    #[error("{registry} refuses access: {what}")]
    Denied { registry: String, what: String },
    #[error("{registry} does not have {what}")]
    NotFound { registry: String, what: String },
    #[error("{registry} cannot be reached: {what}")]
    Unreachable { registry: String, what: String },
    #[error("{registry} answered {status} for {what}: {said:?}")]
    Refused { registry: String, status: u16, what: String, said: String },
    #[error("{registry} returned an unusable answer for {what}: {found}")]
    Answer { registry: String, what: String, found: String },
}

/// The beginning of an error body, for error texts.
pub(super) fn said(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned()
}

/// A connection error, with its causes and without the URL.
pub(super) fn describe(registry: &str, what: &str, error: reqwest::Error) -> RegistryError {
    let what = format!("{what}: {}", error_chain(&error.without_url()));
    RegistryError::Unreachable { registry: registry.to_owned(), what }
}
