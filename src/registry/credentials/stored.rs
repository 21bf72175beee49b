//! Stores the credentials of `mayfly template login`.
//!
//! ```text
//! <data-dir>/registries/           0700
//!   <host[%3Aport]>.json           0600   {"registry", "username", "secret", "saved_at"}
//!   .<host[%3Aport]>.json.new      being written; renamed when complete
//!   .lock                          held while a file is written or removed
//! ```

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{CredentialError, CredentialSource, RegistryCredential, host};
use crate::platform::{clock, files};

#[derive(Clone, Debug)]
pub struct LoginStore {
    dir: PathBuf,
}

/// The parts of a stored login that may be shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoredLogin {
    pub registry: String,
    pub username: String,
    pub saved_at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    #[error("{0:?} is not a registry's host[:port]")]
    NotARegistry(String),
    #[error("{0}")]
    Username(&'static str),
    #[error("{0}")]
    Password(&'static str),
    #[error("{0}")]
    Unreadable(String),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

#[derive(Serialize)]
struct LoginRecord<'a> {
    registry: &'a str,
    username: &'a str,
    secret: &'a str,
    saved_at: Timestamp,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredLoginFile {
    registry: String,
    username: String,
    secret: SecretString,
    saved_at: Timestamp,
}

impl LoginStore {
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.join("registries") }
    }

    /// Replaces the stored login of that registry.
    pub fn save(&self, registry: &str, username: &str, secret: &SecretString) -> Result<(), StoredError> {
        let registry = named(registry)?;
        Self::may_save(username, secret)?;
        let written =
            LoginRecord { registry: &registry, username, secret: secret.expose_secret(), saved_at: clock::now() };
        let bytes = serde_json::to_vec_pretty(&written).expect("strings and a time are JSON");

        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoredError::Io { path, source }
        };
        files::ensure_private_dir(&self.dir).map_err(failed(&self.dir))?;
        let _lock = self.lock()?;
        let path = self.path(&registry);
        files::replace(&path, &bytes).map_err(failed(&path))
    }

    /// Validates a login.
    pub fn may_save(username: &str, secret: &SecretString) -> Result<(), StoredError> {
        if username.is_empty() || username.contains(|c: char| c == ':' || c.is_control()) {
            // In HTTP Basic, the user name ends at the first colon.
            return Err(StoredError::Username(
                "a user's name is not empty and has no colon or control character in it",
            ));
        }
        if secret.expose_secret().is_empty() {
            return Err(StoredError::Password("the password is empty"));
        }
        Ok(())
    }

    /// By name. A file that cannot be read is an error with its name, because it may be the login that the
    /// administrator looks for.
    pub fn list(&self) -> Result<Vec<StoredLogin>, StoredError> {
        let failed = |source| StoredError::Io { path: self.dir.clone(), source };
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut logins = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            let hidden = path.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
            if hidden || path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            if let Some(found) = open(&path).map_err(StoredError::Unreadable)? {
                logins.push(StoredLogin {
                    registry: found.registry,
                    username: found.username,
                    saved_at: found.saved_at,
                });
            }
        }
        logins.sort_by(|a, b| a.registry.cmp(&b.registry));
        Ok(logins)
    }

    /// Returns whether it existed.
    pub fn remove(&self, registry: &str) -> Result<bool, StoredError> {
        let registry = named(registry)?;
        let path = self.path(&registry);
        if !self.dir.exists() {
            return Ok(false);
        }
        let _lock = self.lock()?;
        match fs::remove_file(&path).and_then(|()| files::sync_dir(&self.dir)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(StoredError::Io { path, source }),
        }
    }

    fn path(&self, normal: &str) -> PathBuf {
        self.dir.join(file_name(normal))
    }

    /// The service and the command line may write at the same time.
    fn lock(&self) -> Result<File, StoredError> {
        let path = self.dir.join(".lock");
        let locked = (|| {
            let file = files::private().create(true).append(true).open(&path)?;
            file.lock()?;
            Ok(file)
        })();
        locked.map_err(|source| StoredError::Io { path, source })
    }
}

fn named(registry: &str) -> Result<String, StoredError> {
    host::normal(registry).ok_or_else(|| StoredError::NotARegistry(registry.chars().take(200).collect()))
}

/// A normalised name has letters, digits, dots, dashes, and of special characters only colons and brackets.
fn file_name(normal: &str) -> String {
    format!("{}.json", normal.replace(':', "%3A").replace('[', "%5B").replace(']', "%5D"))
}

fn open(path: &Path) -> Result<Option<StoredLoginFile>, String> {
    let Some(text) = files::read_secret_if_present(path)? else { return Ok(None) };
    let read: StoredLoginFile = serde_json::from_str(text.expose_secret()).map_err(|e| {
        format!(
            "{} is not what was written there (expected JSON with registry, username, secret and saved_at; line {}, column {})",
            path.display(),
            e.line(),
            e.column()
        )
    })?;
    let right = host::normal(&read.registry).is_some_and(|n| path.file_name().is_some_and(|f| f == &*file_name(&n)));
    if !right {
        // A copied file: the password would be sent to another registry.
        return Err(format!("{} is for another registry, by what is in it", path.display()));
    }
    Ok(Some(read))
}

#[async_trait]
impl CredentialSource for LoginStore {
    async fn get(&self, registry: &str, _renew: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        let Some(normal) = host::normal(registry) else { return Ok(None) };
        let path = self.path(&normal);
        let failed = |what: String| CredentialError::new(registry, "template login", what);
        let found = tokio::task::spawn_blocking(move || open(&path))
            .await
            .map_err(|e| failed(e.to_string()))?
            .map_err(failed)?;
        Ok(found.map(|f| RegistryCredential { username: f.username, secret: f.secret, expires_at: None }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn secret(text: &str) -> SecretString {
        text.into()
    }

    async fn given(stored: &LoginStore, registry: &str) -> Option<(String, String)> {
        let credential = stored.get(registry, false).await.unwrap()?;
        Some((credential.username, credential.secret.expose_secret().to_owned()))
    }

    #[tokio::test]
    async fn a_login_is_kept_listed_replaced_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let stored = LoginStore::new(dir.path());
        assert_eq!(stored.list().unwrap(), []);
        assert!(!stored.remove("ghcr.io").unwrap());
        assert_eq!(given(&stored, "ghcr.io").await, None);

        stored.save("GHCR.io", "ci", &secret("one\"\n")).unwrap();
        stored.save("localhost:5000", "me", &secret("two")).unwrap();
        stored.save("[::1]:5000", "six", &secret("three")).unwrap();
        stored.save("ghcr.io", "ci2", &secret("new")).unwrap();
        assert_eq!(given(&stored, "ghcr.io").await, Some(("ci2".into(), "new".into())));
        assert_eq!(given(&stored, "localhost:5000").await, Some(("me".into(), "two".into())));
        assert_eq!(given(&stored, "localhost").await, None);
        assert_eq!(given(&stored, "../localhost").await, None);
        let listed = stored.list().unwrap();
        assert_eq!(
            listed.iter().map(|l| (l.registry.as_str(), l.username.as_str())).collect::<Vec<_>>(),
            [("[::1]:5000", "six"), ("ghcr.io", "ci2"), ("localhost:5000", "me")]
        );

        let registries = dir.path().join("registries");
        assert_eq!(fs::metadata(&registries).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&registries).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
            assert!(!entry.file_name().to_string_lossy().ends_with(".new"));
        }
        assert!(stored.remove("ghcr.io").unwrap());
        assert!(!stored.remove("ghcr.io").unwrap());
        assert_eq!(given(&stored, "ghcr.io").await, None);
        assert_eq!(stored.list().unwrap().len(), 2);
    }

    #[test]
    fn names_that_lead_out_and_empty_secrets_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let stored = LoginStore::new(dir.path());
        for registry in ["", "..", "../x", "a/b", ".hidden"] {
            assert!(
                matches!(stored.save(registry, "ci", &secret("x")), Err(StoredError::NotARegistry(_))),
                "{registry}"
            );
            assert!(matches!(stored.remove(registry), Err(StoredError::NotARegistry(_))), "{registry}");
        }
        for (user, password) in [("", "x"), ("a:b", "x"), ("a\n", "x"), ("ci", "")] {
            let refused = stored.save("ghcr.io", user, &secret(password));
            assert!(matches!(refused, Err(StoredError::Username(_) | StoredError::Password(_))));
        }
        assert_eq!(stored.list().unwrap(), []);
    }

    #[tokio::test]
    async fn a_file_that_is_not_ours_is_named_and_never_quoted() {
        let dir = tempfile::tempdir().unwrap();
        let stored = LoginStore::new(dir.path());
        stored.save("ghcr.io", "ci", &secret("hunter2")).unwrap();
        let path = dir.path().join("registries/ghcr.io.json");
        let good = fs::read_to_string(&path).unwrap();

        for bad in [
            good.replace("\"secret\"", "\"hunter2\""),
            good.replace("\"ci\"", "[\"hunter2\"]"),
            good[..good.len() - 5].to_owned(),
            good.replace("ghcr.io", "quay.io"),
            format!("{good}x"),
            String::new(),
        ] {
            fs::write(&path, &bad).unwrap();
            let error = stored.get("ghcr.io", false).await.unwrap_err().to_string();
            assert!(error.contains("ghcr.io.json"), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
            assert!(stored.list().unwrap_err().to_string().contains("ghcr.io.json"));
        }
        fs::write(&path, &good).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(stored.get("ghcr.io", false).await.unwrap_err().what.contains("chmod 600"));
        assert!(stored.remove("ghcr.io").unwrap(), "what cannot be read can still be removed");
    }

    #[test]
    fn files_left_by_a_crash_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let stored = LoginStore::new(dir.path());
        stored.save("ghcr.io", "ci", &secret("one")).unwrap();
        let staged = dir.path().join("registries/.ghcr.io.json.new");
        fs::write(&staged, "half").unwrap();
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(stored.list().unwrap().len(), 1);
        stored.save("ghcr.io", "ci", &secret("two")).unwrap();
        assert!(!staged.exists());
        let path = dir.path().join("registries/ghcr.io.json");
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
