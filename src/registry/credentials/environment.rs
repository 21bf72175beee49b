//! Credentials from the environment variables of Tart, so that a host that is set up for Tart needs no further setup.

use async_trait::async_trait;
use secrecy::SecretString;

use super::{CredentialError, CredentialSource, RegistryCredential, host};

const USERNAME: &str = "TART_REGISTRY_USERNAME";
const PASSWORD: &str = "TART_REGISTRY_PASSWORD";
const HOSTNAME: &str = "TART_REGISTRY_HOSTNAME";

#[derive(Debug)]
pub struct Environment {
    username: Option<String>,
    password: Option<SecretString>,
    hostname: Option<String>,
}

impl Environment {
    /// The environment at the start of this process.
    pub fn of_process() -> Self {
        Self::of(|name| std::env::var(name).ok())
    }

    /// An empty variable counts as not set.
    pub fn of(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name| variable(name).filter(|v| !v.is_empty());
        Self { username: set(USERNAME), password: set(PASSWORD).map(SecretString::from), hostname: set(HOSTNAME) }
    }
}

#[async_trait]
impl CredentialSource for Environment {
    async fn get(&self, registry: &str, _renew: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        let failed = |what: String| Err(CredentialError::new(registry, "environment", what));
        let (username, password) = match (&self.username, &self.password) {
            (None, None) => return Ok(None),
            (Some(username), Some(password)) => (username, password),
            (Some(_), None) => return failed(format!("{USERNAME} is set without {PASSWORD}")),
            (None, Some(_)) => return failed(format!("{PASSWORD} is set without {USERNAME}")),
        };
        match &self.hostname {
            Some(hostname) if host::same(hostname, registry) => {}
            Some(_) => return Ok(None),
            // Tart sends them to every registry in that case. Here, the caller of the API names the registry, and
            // could get the password by naming his own.
            None => return failed(format!("{USERNAME} is set without {HOSTNAME}, the registry that it is for")),
        }
        Ok(Some(RegistryCredential { username: username.clone(), secret: password.clone(), expires_at: None }))
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn environment(set: &[(&str, &str)]) -> Environment {
        Environment::of(|name| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[tokio::test]
    async fn gives_what_is_set_to_the_named_registry_only() {
        let all = environment(&[(USERNAME, "ci"), (PASSWORD, "pw:1"), (HOSTNAME, "Registry.example:5000")]);
        let given = all.get("registry.example:5000", false).await.unwrap().unwrap();
        assert_eq!((given.username.as_str(), given.secret.expose_secret()), ("ci", "pw:1"));
        for other in ["registry.example", "registry.example:5001", "evil.example:5000"] {
            assert!(all.get(other, false).await.unwrap().is_none(), "{other}");
        }
    }

    #[tokio::test]
    async fn knows_nothing_when_nothing_is_set() {
        let none = environment(&[(USERNAME, ""), (PASSWORD, ""), (HOSTNAME, "ghcr.io")]);
        assert!(none.get("ghcr.io", false).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn half_a_setting_is_an_error_that_names_the_other_half() {
        for (set, missing) in [
            (&[(USERNAME, "ci")][..], PASSWORD),
            (&[(PASSWORD, "pw-1"), (HOSTNAME, "ghcr.io")], USERNAME),
            (&[(USERNAME, "ci"), (PASSWORD, "pw-1")], HOSTNAME),
        ] {
            let error = environment(set).get("ghcr.io", false).await.unwrap_err().to_string();
            assert!(error.contains(&format!("without {missing}")), "{error}");
            assert!(!error.contains("pw-1"));
        }
    }
}
