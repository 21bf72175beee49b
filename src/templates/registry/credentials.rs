//! Who we are to a registry.

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

/// A user name and its secret, as registries take them by HTTP Basic, themselves or to give a token for.
#[derive(Clone, Debug)]
pub struct Credential {
    pub username: String,
    pub secret: SecretString,
    /// From then on it is not to be used; `None`: nobody said.
    pub expires_at: Option<Timestamp>,
}

/// Why a source that should know gave nothing. One line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credentials for {registry}: {source_name}: {what}")]
pub struct CredentialError {
    pub registry: String,
    pub source_name: String,
    pub what: String,
}

/// One place where credentials are kept.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// `host[:port]` as in the image reference. `None`: it knows nothing of this registry, the next source is asked.
    /// `renew`: the registry has just refused what this gave before.
    async fn get(&self, registry: &str, renew: bool) -> Result<Option<Credential>, CredentialError>;
}
