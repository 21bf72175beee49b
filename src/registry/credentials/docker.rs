//! Credentials from Docker's configuration file: written by `docker login`, or returned by helper programs.
//!
//! Sources are tried in Tart's order: `auths` with a password, `credHelpers` (the host itself, then keys that are
//! regular expressions for the whole host, an extension of Tart), `credsStore`.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use base64::{
    Engine,
    engine::{
        DecodePaddingMode, GeneralPurpose,
        general_purpose::{GeneralPurposeConfig, NO_PAD},
    },
};
use regex::Regex;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;

use super::{CredentialError, CredentialSource, HelperError, Helpers, RegistryCredential, host};

/// A file with the logins of a whole company has a few KiB.
const LIMIT: u64 = 1 << 20;
/// The key of Docker's own registry in `docker login` and its helpers.
const HUB: &str = "https://index.docker.io/v1/";
const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, PADDED_OR_NOT);
const PADDED_OR_NOT: GeneralPurposeConfig = NO_PAD.with_decode_padding_mode(DecodePaddingMode::Indifferent);

#[derive(Debug)]
pub struct DockerConfig {
    /// `None`: there is no home directory.
    file: Option<PathBuf>,
    helpers: Helpers,
}

impl DockerConfig {
    /// `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. Read each time, because users log in while the
    /// service runs.
    pub fn of_process() -> Self {
        let dir = match std::env::var_os("DOCKER_CONFIG").filter(|d| !d.is_empty()) {
            Some(dir) => Some(PathBuf::from(dir)),
            None => std::env::home_dir().map(|home| home.join(".docker")),
        };
        Self { file: dir.map(|d| d.join("config.json")), helpers: Helpers::usual() }
    }

    pub fn at(file: impl Into<PathBuf>, helpers: Helpers) -> Self {
        Self { file: Some(file.into()), helpers }
    }
}

#[async_trait]
impl CredentialSource for DockerConfig {
    async fn get(&self, registry: &str, _renew: bool) -> Result<Option<RegistryCredential>, CredentialError> {
        let failed = |what: String| CredentialError::new(registry, "Docker configuration", what);
        let Some(normal) = host::normal(registry) else { return Ok(None) };
        let Some(file) = &self.file else { return Ok(None) };
        let Some(text) = read(file).await.map_err(failed)? else { return Ok(None) };
        let found = DockerConfigFile::parse(&text)
            .and_then(|c| c.look_up(&normal))
            .map_err(|what| failed(format!("{}: {what}", file.display())))?;
        match found {
            DockerLogin::Nothing => Ok(None),
            DockerLogin::Login(credential) => Ok(Some(credential)),
            DockerLogin::Helper(name) => {
                let server = if normal == "docker.io" { HUB } else { &normal };
                self.helpers
                    .get(&name, server)
                    .await
                    .map_err(|HelperError { what, temporary }| CredentialError { temporary, ..failed(what) })
            }
        }
    }
}

async fn read(file: &Path) -> Result<Option<SecretString>, String> {
    let failed = |e: io::Error| format!("{} cannot be read: {e}", file.display());
    match tokio::fs::metadata(file).await {
        Ok(found) if !found.is_file() => return Err(format!("{} is not a file", file.display())),
        Ok(found) if found.len() > LIMIT => {
            return Err(format!("{} is larger than {} MiB", file.display(), LIMIT >> 20));
        }
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    }
    tokio::fs::read_to_string(file).await.map(|text| Some(text.into())).map_err(failed)
}

/// The relevant part of the file.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfigFile {
    #[serde(default)]
    auths: Option<BTreeMap<String, Value>>,
    #[serde(default)]
    cred_helpers: Option<BTreeMap<String, String>>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: Option<SecretString>,
    #[serde(default)]
    username: Option<String>,
    #[serde(default)]
    password: Option<SecretString>,
    #[serde(default)]
    identitytoken: Option<SecretString>,
    #[serde(default)]
    registrytoken: Option<SecretString>,
}

#[derive(Debug)]
enum DockerLogin {
    Login(RegistryCredential),
    Helper(String),
    Nothing,
}

impl DockerConfigFile {
    fn parse(text: &SecretString) -> Result<Self, String> {
        // The parser's message is not shown, because it quotes the content. The parser would also accept an array for
        // a structure.
        let wrong = |at: String| {
            format!("expected Docker's JSON (an object with auths, credHelpers, credsStore), found something else{at}")
        };
        if !text.expose_secret().trim_start().starts_with('{') {
            return Err(wrong(String::new()));
        }
        serde_json::from_str(text.expose_secret())
            .map_err(|e| wrong(format!(" at line {}, column {}", e.line(), e.column())))
    }

    fn look_up(self, registry: &str) -> Result<DockerLogin, String> {
        if let Some(credential) = self.auths.and_then(|a| entry_for(a, registry)).map(login).transpose()?.flatten() {
            return Ok(DockerLogin::Login(credential));
        }
        let helper = self.cred_helpers.and_then(|h| helper_for(h, registry)).or(self.creds_store);
        Ok(helper.filter(|name| !name.is_empty()).map_or(DockerLogin::Nothing, DockerLogin::Helper))
    }
}

/// The registry of a key of `auths`: old keys are URLs, `https://host/v1/`.
fn registry_of(key: &str) -> Option<String> {
    let host = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    host::normal(host.split('/').next().unwrap_or(host))
}

fn entry_for(mut auths: BTreeMap<String, Value>, registry: &str) -> Option<Value> {
    // An exact key takes precedence over an equivalent one.
    auths
        .remove(registry)
        .or_else(|| auths.into_iter().find(|(k, _)| registry_of(k).as_deref() == Some(registry)).map(|(_, v)| v))
}

fn helper_for(mut helpers: BTreeMap<String, String>, registry: &str) -> Option<String> {
    if let Some(helper) = helpers.remove(registry) {
        return Some(helper);
    }
    if let Some((_, helper)) = helpers.iter().find(|(k, _)| registry_of(k).as_deref() == Some(registry)) {
        return Some(helper.clone());
    }
    helpers.into_iter().find(|(key, _)| matches_whole(key, registry)).map(|(_, helper)| helper)
}

fn matches_whole(pattern: &str, registry: &str) -> bool {
    // Grouped, so that `a|b` means one of both and not "begins with a or ends with b".
    match Regex::new(&format!(r"\A(?:{pattern})\z")) {
        Ok(pattern) => pattern.is_match(registry),
        Err(_) => {
            tracing::warn!(key = pattern, "a key of credHelpers is neither a host nor a regular expression");
            false
        }
    }
}

/// `None`: an empty entry, which Docker writes if a helper stores the password.
fn login(entry: Value) -> Result<Option<RegistryCredential>, String> {
    let shape = "the registry's entry in auths is not of Docker's shape (expected an object with strings)";
    if !entry.is_object() {
        return Err(shape.into());
    }
    let Auth { auth, username, password, identitytoken, registrytoken } =
        serde_json::from_value(entry).map_err(|_| shape)?;
    let set = |s: Option<SecretString>| s.filter(|s| !s.expose_secret().is_empty());
    for (token, name) in [(set(identitytoken), "an identity token"), (set(registrytoken), "a registry token")] {
        if token.is_some() {
            return Err(format!(
                "the registry's entry in auths holds {name}, which is not supported: log in with a user's name and a password or access token"
            ));
        }
    }
    let (username, secret) = match (set(auth), username.filter(|u| !u.is_empty()), set(password)) {
        (Some(auth), _, _) => decode(&auth)?,
        (None, Some(username), Some(password)) => (username, password),
        (None, None, None) => return Ok(None),
        (None, Some(_), None) => return Err("the registry's entry in auths has a username without a password".into()),
        (None, None, Some(_)) => return Err("the registry's entry in auths has a password without a username".into()),
    };
    Ok(Some(RegistryCredential { username, secret, expires_at: None }))
}

fn decode(auth: &SecretString) -> Result<(String, SecretString), String> {
    let wrong =
        || "the registry's auth is not what it should be (expected base64 of user:password; not shown)".to_owned();
    let bytes = BASE64.decode(auth.expose_secret().trim()).map_err(|_| wrong())?;
    let text = SecretString::from(String::from_utf8(bytes).map_err(|_| wrong())?);
    // Split at the first colon: a user name has none, a password may.
    let (username, secret) = text.expose_secret().split_once(':').ok_or_else(wrong)?;
    // Old versions of Docker padded with zeros.
    let secret = secret.trim_end_matches('\0');
    if username.is_empty() || secret.is_empty() {
        return Err(wrong());
    }
    Ok((username.to_owned(), secret.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, registry: &str) -> Result<String, String> {
        Ok(match DockerConfigFile::parse(&json.into())?.look_up(registry)? {
            DockerLogin::Login(c) => format!("{} {}", c.username, c.secret.expose_secret()),
            DockerLogin::Helper(name) => format!("helper {name}"),
            DockerLogin::Nothing => "nothing".into(),
        })
    }

    fn auth(user_and_password: &str) -> String {
        base64::engine::general_purpose::STANDARD.encode(user_and_password)
    }

    #[test]
    fn passwords_in_the_file() {
        let json = format!(
            r#"{{"auths": {{"ghcr.io": {{"auth": "{}"}}, "https://quay.io/v1/": {{"auth": "{}"}}, "localhost:5000": {{"username": "me", "password": "p:w"}},
                "{HUB}": {{"auth": "{}", "email": "a@b"}}, "padded.example": {{"auth": "{}"}}, "bare.example": {{"auth": "YTpi"}}}},
                "HttpHeaders": {{"x": 1}}, "psFormat": "table"}}"#,
            auth("ci:pw:with:colons"),
            auth("q:1"),
            auth("hub:2"),
            auth("z:3\0\0"),
        );
        for (registry, expected) in [
            ("ghcr.io", "ci pw:with:colons"),
            ("quay.io", "q 1"),
            ("localhost:5000", "me p:w"),
            ("localhost", "nothing"),
            ("docker.io", "hub 2"),
            ("padded.example", "z 3"),
            ("bare.example", "a b"),
            ("evilghcr.io", "nothing"),
        ] {
            assert_eq!(found(&json, registry).as_deref(), Ok(expected), "{registry}");
        }
    }

    #[test]
    fn helpers_by_host_by_pattern_and_for_all() {
        let json = format!(
            r#"{{"auths": {{"ghcr.io": {{}}, "has.example": {{"auth": "{}"}}}},
                "credHelpers": {{"ghcr.io": "gh", "(.*).dkr.ecr.(.*).amazonaws.com": "ecr-login", "a\\.example|b\\.example": "ab",
                                 "*.broken": "never", "has.example": "never"}},
                "credsStore": "all"}}"#,
            auth("u:p")
        );
        for (registry, expected) in [
            ("ghcr.io", "helper gh"),
            ("has.example", "u p"),
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com", "helper ecr-login"),
            ("123456789012.dkr.ecr.us-east-1.amazonaws.com.evil.example", "helper all"),
            ("a.example", "helper ab"),
            ("b.example", "helper ab"),
            ("a.example.org", "helper all"),
            ("x.b.example", "helper all"),
            ("x.broken", "helper all"),
        ] {
            assert_eq!(found(&json, registry).as_deref(), Ok(expected), "{registry}");
        }
    }

    #[test]
    fn nothing_is_nothing() {
        for json in ["{}", r#"{"auths": null, "credsStore": ""}"#, r#"{"auths": {"ghcr.io": {"auth": ""}}}"#] {
            assert_eq!(found(json, "ghcr.io").as_deref(), Ok("nothing"), "{json}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused_and_never_quoted() {
        let of = |entry: &str| format!(r#"{{"auths": {{"ghcr.io": {entry}}}}}"#);
        for (json, expected) in [
            (of(r#"{"identitytoken": "hunter2"}"#), "an identity token, which is not supported"),
            (of(&format!(r#"{{"auth": "{}", "identitytoken": "hunter2"}}"#, auth("u:p"))), "an identity token"),
            (of(r#"{"registrytoken": "hunter2"}"#), "a registry token"),
            (of(r#"{"auth": "hunter2!"}"#), "expected base64 of user:password"),
            (of(&format!(r#"{{"auth": "{}"}}"#, auth("hunter2"))), "expected base64 of user:password"),
            (of(&format!(r#"{{"auth": "{}"}}"#, auth(":hunter2"))), "expected base64 of user:password"),
            (of(&format!(r#"{{"auth": "{}"}}"#, auth("hunter2:"))), "expected base64 of user:password"),
            (of(r#"{"auth": ["hunter2"]}"#), "not of Docker's shape"),
            (of(r#"["hunter2"]"#), "not of Docker's shape"),
            (of(r#""hunter2""#), "not of Docker's shape"),
            (of(r#"{"username": "hunter2"}"#), "without a password"),
            (of(r#"{"password": "hunter2"}"#), "without a username"),
            (r#"{"auths": "hunter2"}"#.into(), "expected Docker's JSON"),
            (r#"{"auths": {}"#.into(), "expected Docker's JSON"),
            (r#"[{"ghcr.io": {"auth": "hunter2"}}]"#.into(), "expected Docker's JSON"),
            ("hunter2".into(), "expected Docker's JSON"),
            (String::new(), "expected Docker's JSON"),
        ] {
            let error = found(&json, "ghcr.io").unwrap_err();
            assert!(error.contains(expected), "{json}: {error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        // An invalid entry of another registry is ignored.
        assert_eq!(found(&of(r#"{"identitytoken": "x"}"#), "quay.io").as_deref(), Ok("nothing"));
    }

    #[tokio::test]
    async fn a_missing_file_is_nothing_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let source = DockerConfig::at(&file, Helpers::usual());
        assert!(source.get("ghcr.io", false).await.unwrap().is_none());
        std::fs::write(&file, "hunter2").unwrap();
        let error = source.get("ghcr.io", false).await.unwrap_err().to_string();
        assert!(error.contains(&*file.to_string_lossy()) && !error.contains("hunter2"), "{error}");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        assert!(source.get("ghcr.io", false).await.unwrap_err().what.contains("is not a file"));
    }
}
