//! Credentials from the configuration: a user, and a file with the password.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use secrecy::{ExposeSecret, SecretString};

use super::{CredentialError, CredentialSource, RegistryCredential, host};
use crate::platform::files;

/// The file is read each time, so that a new password needs no restart.
#[derive(Debug, Default)]
pub struct Static {
    logins: Vec<Configured>,
}

#[derive(Debug)]
struct Configured {
    registry: String,
    username: String,
    password_file: PathBuf,
}

impl Static {
    pub fn with(
        mut self,
        registry: impl Into<String>,
        username: impl Into<String>,
        password_file: impl Into<PathBuf>,
    ) -> Self {
        self.logins.push(Configured {
            registry: registry.into(),
            username: username.into(),
            password_file: password_file.into(),
        });
        self
    }
}

#[async_trait]
impl CredentialSource for Static {
    async fn get(&self, registry: &str, _renew: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        let Some(login) = self.logins.iter().find(|l| host::same(&l.registry, registry)) else { return Ok(None) };
        let failed = |what: String| CredentialError::new(registry, "configuration", what);
        let path = login.password_file.clone();
        let read = tokio::task::spawn_blocking(move || password_in(&path)).await;
        let secret = read.map_err(|e| failed(e.to_string()))?.map_err(failed)?;
        Ok(Some(RegistryCredential { username: login.username.clone(), secret, expires_at: None }))
    }
}

/// The content of a password file, if only its owner may read it.
pub fn password_in(path: &Path) -> Result<SecretString, String> {
    let text = files::read_secret(path)?;
    let secret = without_line_end(&text);
    if secret.expose_secret().is_empty() {
        return Err(format!("{} is empty", path.display()));
    }
    Ok(secret)
}

/// Editors and `echo` add a line end, which is not part of the password.
fn without_line_end(text: &SecretString) -> SecretString {
    let text = text.expose_secret();
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text).into()
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[tokio::test]
    async fn gives_what_the_file_holds_now() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        let source = Static::default().with("ghcr.io", "ci", &file);
        assert!(source.get("quay.io", false).await.unwrap().is_none());
        assert!(source.get("ghcr.io", false).await.unwrap_err().what.contains("there is no"));

        for (content, expected) in [("pw one\n", "pw one"), ("two\r\n", "two"), ("three\n\n", "three\n"), ("4", "4")] {
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            let given = source.get("GHCR.io", false).await.unwrap().unwrap();
            assert_eq!((given.username.as_str(), given.secret.expose_secret()), ("ci", expected));
        }
        fs::write(&file, "\n").unwrap();
        assert!(source.get("ghcr.io", false).await.unwrap_err().what.contains("is empty"));
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(source.get("ghcr.io", false).await.unwrap_err().what.contains("chmod 600"));
    }
}
