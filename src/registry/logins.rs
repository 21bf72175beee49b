//! Manages logins of registries: checks them against the registry, stores, lists and removes them.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretString;

use super::{
    RegistryClient, RegistryOptions,
    client::LoginCheck,
    credentials::{
        Chain, CredentialError, CredentialSource, LoginStore, RegistryCredential, StoredError, registry_name,
    },
    error::RegistryError,
};
use crate::platform::clock;

/// A login of one registry, without the secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedLogin {
    pub registry: String,
    pub username: String,
    pub origin: LoginOrigin,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginOrigin {
    /// `password_file` in the configuration, which takes precedence over a login.
    Configuration,
    Login {
        saved_at: Timestamp,
    },
}

/// The result of a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedIn {
    pub known: SavedLogin,
    /// Whether the registry was asked, and accepted the login.
    pub checked: bool,
    /// Notes for the caller, as sentences.
    pub notices: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error("{0:?} is not a registry's host[:port]")]
    NotARegistry(String),
    #[error("{0}")]
    Username(&'static str),
    #[error("{0}")]
    Password(&'static str),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("logins cannot be kept: {0}")]
    Storage(String),
}

impl From<StoredError> for LoginError {
    fn from(error: StoredError) -> Self {
        match error {
            StoredError::NotARegistry(name) => LoginError::NotARegistry(name),
            StoredError::Username(what) => LoginError::Username(what),
            StoredError::Password(what) => LoginError::Password(what),
            StoredError::Unreadable(_) | StoredError::Io { .. } => LoginError::Storage(error.to_string()),
        }
    }
}

/// The logins of registries, stored and configured.
#[derive(Clone)]
pub struct Logins {
    stored: LoginStore,
    options: RegistryOptions,
    /// Registry and user of the logins in the configuration.
    configured: Vec<(String, String)>,
    chain: Arc<Chain>,
}

impl Logins {
    /// `chain` caches the credentials of stored logins.
    pub fn new(
        data_dir: PathBuf,
        options: RegistryOptions,
        configured: Vec<(String, String)>,
        chain: Arc<Chain>,
    ) -> Logins {
        Logins { stored: LoginStore::new(&data_dir), options, configured, chain }
    }

    /// Stores a login, unless the registry refuses it. With `check` false, the registry is not asked.
    pub async fn login(
        &self,
        registry: &str,
        username: &str,
        secret: SecretString,
        check: bool,
    ) -> Result<LoggedIn, LoginError> {
        let registry = named(registry)?;
        LoginStore::may_save(username, &secret)?;
        let mut notices = Vec::new();
        let mut checked = false;
        if check {
            let mine =
                Given(RegistryCredential { username: username.to_owned(), secret: secret.clone(), expires_at: None });
            match RegistryClient::knock(&registry, &self.options, Arc::new(mine)).await? {
                LoginCheck::LetIn => checked = true,
                LoginCheck::NotAsked => notices.push(format!(
                    "{registry} accepts requests to /v2/ without credentials, so this password could not be checked"
                )),
            }
        }
        if self.configured.iter().any(|(name, _)| *name == registry) {
            notices.push(format!(
                "the configuration has a user and password for {registry}, which count before this login"
            ));
        }
        let (stored, name, user) = (self.stored.clone(), registry.clone(), username.to_owned());
        blocking(move || stored.save(&name, &user, &secret)).await?;
        self.chain.forget(&registry);
        let known = SavedLogin {
            registry,
            username: username.to_owned(),
            origin: LoginOrigin::Login { saved_at: clock::now() },
        };
        Ok(LoggedIn { known, checked, notices })
    }

    /// Returns whether it existed.
    pub async fn logout(&self, registry: &str) -> Result<bool, LoginError> {
        let registry = named(registry)?;
        let (stored, name) = (self.stored.clone(), registry.clone());
        let there_was = blocking(move || stored.remove(&name)).await?;
        self.chain.forget(&registry);
        Ok(there_was)
    }

    /// By name; for one registry, the login with precedence comes first.
    pub async fn list(&self) -> Result<Vec<SavedLogin>, LoginError> {
        let stored = self.stored.clone();
        let logins = blocking(move || stored.list()).await?;
        let configured = self.configured.iter().map(|(registry, username)| SavedLogin {
            registry: registry.clone(),
            username: username.clone(),
            origin: LoginOrigin::Configuration,
        });
        let logins = logins.into_iter().map(|login| SavedLogin {
            registry: login.registry,
            username: login.username,
            origin: LoginOrigin::Login { saved_at: login.saved_at },
        });
        let mut all: Vec<SavedLogin> = configured.chain(logins).collect();
        all.sort_by(|a, b| a.registry.cmp(&b.registry));
        Ok(all)
    }
}

fn named(registry: &str) -> Result<String, LoginError> {
    registry_name(registry).ok_or_else(|| LoginError::NotARegistry(registry.chars().take(200).collect()))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoredError> + Send + 'static,
) -> Result<T, LoginError> {
    let done = tokio::task::spawn_blocking(work).await.map_err(|e| LoginError::Storage(e.to_string()))?;
    Ok(done?)
}

/// The login that is tested.
struct Given(RegistryCredential);

#[async_trait]
impl CredentialSource for Given {
    async fn get(&self, _: &str, _: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        Ok(Some(self.0.clone()))
    }
}
