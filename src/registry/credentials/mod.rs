//! Finds credentials for registries.
//!
//! ```text
//! Chain            queries the others in order and caches the results; one query per registry at a time
//!   Environment    TART_REGISTRY_USERNAME, _PASSWORD, _HOSTNAME
//!   Static         credentials of the configuration: a user and a file with the password
//!   Stored         credentials of `mayfly template login`: files in the data directory
//!   DockerConfig   credentials of `docker login`, and of the helper programs that it names
//!   Ecr            Amazon's registry, with the credentials of the host's role, a profile or the environment
//! ```
//!
//! No argument, log or error text contains a secret. For that reason an answer that cannot be parsed is not quoted
//! here, unlike everywhere else: it may contain the secret.

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
use secrecy::{ExposeSecret as _, SecretString};

pub use chain::Chain;
pub use configured::{Static, password_in};
pub use docker::DockerConfig;
pub use ecr::Ecr;
pub use environment::Environment;
pub use helper::{HelperError, Helpers};
pub use host::normal as registry_name;
pub use stored::{LoginStore, StoredError, StoredLogin};

/// A user name and its secret, for HTTP Basic at the registry or at its token service.
#[derive(Clone, Debug)]
pub struct RegistryCredential {
    pub username: String,
    pub secret: SecretString,
    /// Expiry; `None`: not known.
    pub expires_at: Option<Timestamp>,
}

impl RegistryCredential {
    /// Whether a registry that refused one would refuse the other.
    pub fn is_same(&self, other: &RegistryCredential) -> bool {
        self.username == other.username && self.secret.expose_secret() == other.secret.expose_secret()
    }
}

/// Why a source that should have credentials returned none. One line, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("credentials for {registry}: {source_name}: {what}")]
pub struct CredentialError {
    pub registry: String,
    pub source_name: String,
    pub what: String,
    /// Whether the source may have credentials later, without a change of its settings.
    pub temporary: bool,
}

impl CredentialError {
    /// The source's settings are wrong, or it refused.
    fn new(registry: &str, source_name: &str, what: impl Into<String>) -> Self {
        Self { registry: registry.into(), source_name: source_name.into(), what: what.into(), temporary: false }
    }

    /// It is not known what the source has.
    fn temporary(registry: &str, source_name: &str, what: impl Into<String>) -> Self {
        Self { temporary: true, ..Self::new(registry, source_name, what) }
    }
}

/// A source of credentials.
#[async_trait]
pub trait CredentialSource: Send + Sync {
    /// `host[:port]` as in the image reference. `None`: it has no credentials for this registry, and the next source
    /// is queried. `renew`: the registry has just refused the previous result.
    async fn get(&self, registry: &str, renew: bool) -> Result<Option<RegistryCredential>, CredentialError>;
}
