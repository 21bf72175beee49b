//! OCI registries and S3: the transport of images, and the documents that describe them.
//!
//! ```text
//! oci          manifests, digests, references and chunk compression of images
//! client       downloads manifests and blobs of one repository and resumes after interruptions
//! upload       uploads them
//!   auth       answers the authentication challenges of a registry
//!   retry      decides which failures are retried, and when
//!   pace       limits the transfer rate
//! credentials  finds the credentials for a registry
//! logins       checks and stores the credentials of `mayfly registry login`
//! s3           downloads and uploads disk images in S3
//! aws          loads the AWS configuration
//! ```

mod auth;
mod aws;
pub mod client;
pub mod credentials;
pub mod logins;
pub mod oci;
pub mod pace;
mod retry;
pub mod s3;
pub mod upload;

pub use client::{HostOptions, RegistryClient, RegistryOptions};
pub use pace::{BandwidthLimit, BandwidthLimits};

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
