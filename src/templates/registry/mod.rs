//! Registries of OCI artifacts.
//!
//! ```text
//! client       manifests and blobs of one repository, over any number of interruptions
//! upload       the other way round
//!   auth       what the registry asks for, and what it is answered
//!   retry      which failures are worth another attempt, and when
//!   pace       how fast bytes may come
//! credentials  who we are to a registry
//! logins       what we were told of that, checked and kept
//! ```

mod auth;
pub mod client;
pub mod credentials;
pub mod logins;
pub mod pace;
mod retry;
pub mod upload;

pub use client::{Client, HostOptions, Options};
pub use pace::{Limit, Limits};
pub use retry::Retry;

/// Why a registry did not give what was asked for. Never holds an address: what a registry redirects to is signed with secrets.
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
    #[error("{registry} gave an answer that cannot be used for {what}: {found}")]
    Answer { registry: String, what: String, found: String },
}
