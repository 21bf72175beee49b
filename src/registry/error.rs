//! Why a registry did not do what was requested.

use super::credentials;
use crate::platform::{
    error_chain,
    reach::{self, ReachError},
    tls,
};

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
    /// It did not prove that it is this registry.
    #[error("{registry} cannot be trusted: {what}")]
    Untrusted { registry: String, what: String },
    #[error("{registry} answered {status} for {what}: {said:?}{after}", after = after(*retry_after))]
    Refused {
        registry: String,
        status: u16,
        what: String,
        said: String,
        /// In seconds.
        retry_after: Option<u32>,
    },
    /// It no longer knows an upload that it had begun.
    #[error("{registry} answered {status} for {what}, which it had begun: {said:?}")]
    UploadLost { registry: String, status: u16, what: String, said: String },
    /// The answer may have been damaged on its way.
    #[error("{registry} returned an unusable answer for {what}: {found}")]
    Answer { registry: String, what: String, found: String },
    /// No attempt can change this answer.
    #[error("{registry} returned an unusable answer for {what}: {found}")]
    Unusable { registry: String, what: String, found: String },
}

fn after(retry_after: Option<u32>) -> String {
    retry_after.map(|seconds| format!("; it asks for a pause of {seconds} s")).unwrap_or_default()
}

/// Longest quotation of a registry, in bytes.
const QUOTED: usize = 200;

/// What a registry says in an error body of the OCI distribution specification, for error texts. Anything else is not
/// quoted: the body may be of another server than expected.
pub(super) fn said(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        code: String,
        #[serde(default)]
        message: Option<String>,
    }
    let Ok(Errors { errors }) = serde_json::from_slice(body) else { return String::new() };
    let texts = errors.into_iter().map(|Entry { code, message }| match message.filter(|text| !text.is_empty()) {
        Some(message) => format!("{code}: {message}"),
        None => code,
    });
    let mut text = texts.collect::<Vec<_>>().join("; ");
    text.retain(|c| !c.is_control());
    text.truncate(text.floor_char_boundary(QUOTED));
    text
}

/// Why a server that a registry or a caller named may not be reached.
pub(super) fn out_of_reach(registry: &str, what: &str, error: &ReachError) -> RegistryError {
    let host = error.server().split_once("://").map_or(error.server(), |(_, host)| host);
    let what = format!("{what}: {error}; if it is yours, add `[registries.\"{host}\"]` to the configuration");
    RegistryError::Settings { registry: registry.to_owned(), what }
}

/// A connection error, with its causes and without the URL.
pub(super) fn describe(registry: &str, what: &str, error: reqwest::Error) -> RegistryError {
    if let Some(refused) = reach::refused(&error) {
        // A name is refused when it is resolved, where the port is not known.
        let with_port = error.url().filter(|url| url.host_str() == Some(refused.server()));
        let refused = match with_port {
            Some(url) => ReachError::NotPublic { origin: url.origin().ascii_serialization() },
            None => refused.clone(),
        };
        return out_of_reach(registry, what, &refused);
    }
    let registry = registry.to_owned();
    if error.is_redirect() {
        let found = error_chain(&error.without_url());
        return RegistryError::Unusable { registry, what: what.to_owned(), found };
    }
    if let Some(why) = tls::distrust(&error) {
        return RegistryError::Untrusted { registry, what: format!("{what}: {why}") };
    }
    let what = format!("{what}: {}", error_chain(&error.without_url()));
    RegistryError::Unreachable { registry, what }
}
