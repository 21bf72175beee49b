//! GitHub credentials: an App with its private key, or a personal access token.

use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};

use super::jwt;
use crate::platform::files::read_secret;

/// Environment variable with an App's private key, if no file is configured.
pub const KEY_VARIABLE: &str = "MAYFLY_GITHUB_PRIVATE_KEY";
/// Environment variable with a token, if neither a file nor an App is configured.
pub const TOKEN_VARIABLE: &str = "MAYFLY_GITHUB_TOKEN";

/// Where the credentials are. Contains no secrets, except those of the environment.
#[derive(Clone, Debug)]
pub enum CredentialLocation {
    AppKeyFile { app_id: String, installation: Option<u64>, path: PathBuf },
    AppKey { app_id: String, installation: Option<u64>, pem: SecretString },
    TokenFile(PathBuf),
    Token(SecretString),
}

impl CredentialLocation {
    /// The configured credentials, else those of the environment; `None` if there are none.
    pub fn choose(
        app_id: Option<&str>,
        installation: Option<u64>,
        key_file: Option<PathBuf>,
        token_file: Option<PathBuf>,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<CredentialLocation>, String> {
        let env = |name: &str| env(name).filter(|v| !v.is_empty()).map(SecretString::from);
        if let Some(app_id) = app_id {
            let app_id = app_id.to_owned();
            return match (key_file, env(KEY_VARIABLE)) {
                (Some(path), _) => Ok(Some(CredentialLocation::AppKeyFile { app_id, installation, path })),
                (None, Some(pem)) => Ok(Some(CredentialLocation::AppKey { app_id, installation, pem })),
                (None, None) => {
                    Err(format!("the App {app_id} has no private key: set `github.private_key_file` or {KEY_VARIABLE}"))
                }
            };
        }
        Ok(token_file.map(CredentialLocation::TokenFile).or_else(|| env(TOKEN_VARIABLE).map(CredentialLocation::Token)))
    }

    /// For log and messages.
    pub fn describe(&self) -> String {
        match self {
            CredentialLocation::AppKeyFile { app_id, path, .. } => {
                format!("App {app_id}, private key in {}", path.display())
            }
            CredentialLocation::AppKey { app_id, .. } => format!("App {app_id}, private key from {KEY_VARIABLE}"),
            CredentialLocation::TokenFile(path) => format!("personal access token in {}", path.display()),
            CredentialLocation::Token(_) => format!("personal access token from {TOKEN_VARIABLE}"),
        }
    }

    /// Reads it. Files are small, and on this host.
    pub fn load(&self) -> Result<GitHubCredential, String> {
        match self {
            CredentialLocation::AppKeyFile { app_id, installation, path } => {
                let pem = read_secret(path)?;
                let signer = jwt::Signer::new(app_id, &pem).map_err(|why| format!("{}: {why}", path.display()))?;
                Ok(GitHubCredential::App { signer, installation: *installation })
            }
            CredentialLocation::AppKey { app_id, installation, pem } => {
                let signer = jwt::Signer::new(app_id, pem).map_err(|why| format!("{KEY_VARIABLE}: {why}"))?;
                Ok(GitHubCredential::App { signer, installation: *installation })
            }
            CredentialLocation::TokenFile(path) => {
                token(&read_secret(path)?).map_err(|why| format!("{}: {why}", path.display()))
            }
            CredentialLocation::Token(text) => token(text).map_err(|why| format!("{TOKEN_VARIABLE}: {why}")),
        }
    }
}

/// Credentials that were read and are usable.
#[derive(Clone, Debug)]
pub enum GitHubCredential {
    App { signer: jwt::Signer, installation: Option<u64> },
    Token(SecretString),
}

impl GitHubCredential {
    pub(super) fn same(&self, other: &GitHubCredential) -> bool {
        match (self, other) {
            (GitHubCredential::Token(a), GitHubCredential::Token(b)) => a.expose_secret() == b.expose_secret(),
            (GitHubCredential::App { signer: a, .. }, GitHubCredential::App { signer: b, .. }) => a.same(b),
            _ => false,
        }
    }
}

fn token(text: &SecretString) -> Result<GitHubCredential, String> {
    let text = text.expose_secret().trim();
    // Lengths are not checked, because formats have grown. A token must be valid in a header.
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return Err("expected one line with a personal access token".to_owned());
    }
    Ok(GitHubCredential::Token(text.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_come_before_the_environment() {
        let env = |name: &str| Some(format!("secret of {name}"));
        let nothing = |_: &str| None;
        let file = || Some(PathBuf::from("/f"));
        let choose =
            |app, key, token| CredentialLocation::choose(app, Some(7), key, token, env).unwrap().unwrap().describe();
        assert_eq!(choose(Some("Iv1"), file(), None), "App Iv1, private key in /f");
        assert_eq!(choose(Some("Iv1"), None, None), "App Iv1, private key from MAYFLY_GITHUB_PRIVATE_KEY");
        assert_eq!(choose(None, None, file()), "personal access token in /f");
        assert_eq!(choose(None, None, None), "personal access token from MAYFLY_GITHUB_TOKEN");
        assert!(CredentialLocation::choose(None, None, None, None, nothing).unwrap().is_none());
        assert!(
            CredentialLocation::choose(Some("1"), None, None, None, nothing).unwrap_err().contains("private_key_file")
        );
        let shown = format!("{:?}", CredentialLocation::choose(None, None, None, None, env));
        assert!(!shown.contains("secret of"), "{shown}");
    }

    #[test]
    fn a_token_is_one_line() {
        let load = |text: &str| CredentialLocation::Token(text.into()).load();
        match load("ghp_x\n").unwrap() {
            GitHubCredential::Token(token) => assert_eq!(token.expose_secret(), "ghp_x"),
            other => panic!("{other:?}"),
        }
        for wrong in ["", " \n", "a b", "ghp_a\nghp_b"] {
            let said = load(wrong).unwrap_err();
            assert!(said.starts_with("MAYFLY_GITHUB_TOKEN: expected one line") && !said.contains("ghp_"), "{said}");
        }
        assert!(!format!("{:?}", load("ghp_hunter2").unwrap()).contains("hunter2"));
    }
}
