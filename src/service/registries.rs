//! Logins of registries: logging in and out, and listing them.

pub use crate::registry::logins::{LoggedIn, LoginOrigin, SavedLogin};
use secrecy::SecretString;

use crate::{
    domain::{Code, Error, Result},
    registry::{
        FailureVerdict, Party, Prospect, RegistryError,
        logins::{LoginError, Logins},
    },
};

#[derive(Clone)]
pub struct Registries {
    logins: Logins,
}

impl Registries {
    pub fn new(logins: Logins) -> Self {
        Self { logins }
    }

    /// Stores a login, unless the registry refuses it. With `check` false, the registry is not asked.
    pub async fn log_in(&self, registry: &str, username: &str, secret: SecretString, check: bool) -> Result<LoggedIn> {
        let done = self.logins.login(registry, username, secret, check).await.map_err(failed)?;
        let known = &done.known;
        tracing::info!(registry.host = %known.registry, username = %known.username, checked = done.checked, "stored a registry login");
        Ok(done)
    }

    /// A missing login is an error, because the caller may have mistyped the registry.
    pub async fn log_out(&self, registry: &str) -> Result<()> {
        if !self.logins.logout(registry).await.map_err(failed)? {
            let shown: String = registry.chars().take(200).collect();
            return Err(Error::new(Code::LoginNotFound, format!("no login is stored for {shown:?}")));
        }
        tracing::info!(registry.host = registry, "removed a registry login");
        Ok(())
    }

    pub async fn list_logins(&self) -> Result<Vec<SavedLogin>> {
        self.logins.list().await.map_err(failed)
    }
}

fn failed(error: LoginError) -> Error {
    let detail = error.to_string();
    let invalid = |field: &str| Error::new(Code::RequestInvalid, "the request is not acceptable").field(field, &detail);
    match error {
        LoginError::NotARegistry(_) => invalid("path:host"),
        LoginError::Username(_) => invalid("/username"),
        LoginError::Password(_) => invalid("/password"),
        LoginError::Registry(error) => refused(&error, detail),
        LoginError::Storage(cause) => Error::internal(cause),
    }
}

fn refused(error: &RegistryError, detail: String) -> Error {
    let code = match error.verdict() {
        FailureVerdict { party: Party::Credentials, prospect: Prospect::Final } => Code::LoginRefused,
        _ => Code::RegistryUnavailable,
    };
    Error { retry_after: error.retry_after(), ..Error::new(code, detail) }
}
