//! OCI registries and S3: the transport of images, and the documents that describe them.
//!
//! ```text
//! oci          manifests, digests, references and chunk compression of images
//! client       downloads manifests and blobs of one repository and resumes after interruptions
//! upload       uploads them
//!   body       reads bodies that come fast enough
//!   auth       answers the authentication challenges of a registry
//!   error      why a registry did not do what was requested
//!   verdict    what each failure means: the table
//!   retry      retries as the table says
//!   pace       limits the transfer rate
//! credentials  finds the credentials for a registry
//! logins       checks and stores the credentials of `mayfly template login`
//! s3           downloads and uploads disk images in S3
//! aws          loads the AWS configuration
//! section      what can be configured
//! ```

mod auth;
mod aws;
mod body;
pub mod client;
pub mod credentials;
mod error;
pub mod logins;
pub mod oci;
pub mod pace;
mod retry;
pub mod s3;
mod section;
pub mod upload;
mod verdict;

pub use client::{HostOptions, RegistryClient, RegistryOptions};
pub use error::RegistryError;
pub use pace::{BandwidthLimit, BandwidthLimits};
pub use section::{RegistryHostSection, RegistrySection};
pub use verdict::{FailureVerdict, Party, Prospect};
