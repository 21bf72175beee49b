//! Who we are to a registry.
//!
//! ```text
//! Chain            asks the others in order; keeps what they gave; one question per registry at a time
//!   Environment    TART_REGISTRY_USERNAME, _PASSWORD, _HOSTNAME
//!   Static         what the configuration says: a user and a file with the password
//!   Stored         what was given to `mayfly template login`: files under the data directory
//!   DockerConfig   what was given to `docker login`, and the helper programs that it names
//!   Ecr            Amazon's registry, by the credentials of the host's role, a profile or the environment
//! ```
//!
//! A secret is in no argument, no log and no error text. That is why an answer that could not be parsed is not quoted here,
//! as it is everywhere else: the part that was not understood may be the secret.

mod chain;
mod configured;
mod docker;
mod ecr;
mod environment;
mod helper;
mod host;
mod stored;

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

pub use chain::Chain;
pub use configured::{Static, password_in};
pub use docker::DockerConfig;
pub use ecr::Ecr;
pub use environment::Environment;
pub use helper::Helpers;
pub use host::normal as registry_name;
pub use stored::{LoginStore, StoredError, StoredLogin};

/// A user name and its secret, as registries take them by HTTP Basic, themselves or to give a token for.
#[derive(Clone, Debug)]
pub struct RegistryCredential {
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

impl CredentialError {
    fn new(registry: &str, source_name: &str, what: impl Into<String>) -> Self {
        Self { registry: registry.into(), source_name: source_name.into(), what: what.into() }
    }
}

/// One place where credentials are kept.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// `host[:port]` as in the image reference. `None`: it knows nothing of this registry, the next source is asked.
    /// `renew`: the registry has just refused what this gave before.
    async fn get(&self, registry: &str, renew: bool) -> Result<Option<RegistryCredential>, CredentialError>;
}
