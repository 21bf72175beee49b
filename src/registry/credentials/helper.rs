//! Runs credential helpers: `docker-credential-NAME get` gets the server on standard input, and answers with JSON.
//!
//! Helpers are other people's programs, so there are limits on time and output, and only standard output is used.
//! Standard error is not read at all, because some helpers write secrets to it in verbose mode.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::RegistryCredential;
use crate::platform::process::{Command, CommandError, is_executable, search_path};

/// A token has a few KiB.
const LIMIT: usize = 64 << 10;
/// Some helpers query a cloud over a slow link. A dialogue would never be answered.
const DEADLINE: Duration = Duration::from_secs(20);
/// The message of the helpers' common library for "no credentials", which comes with an error status.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// In place of a user name: the secret is an identity token, which Basic authentication cannot use.
const IDENTITY_TOKEN: &str = "<token>";

/// Environment variables for a helper: those for finding its files, key rings, agents and cloud, and no others.
const KEPT_ENV: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "XDG_CONFIG_HOME",
    "XDG_CACHE_HOME",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_CONFIG",
    "GNUPGHOME",
    "PASSWORD_STORE_DIR",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];
const KEPT_ENV_OF_CLOUDS: &[&str] = &["AWS_", "GOOGLE_", "CLOUDSDK_", "AZURE_"];

/// Why a helper gave no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HelperError {
    pub what: String,
    /// Whether it may answer later.
    pub temporary: bool,
}

impl HelperError {
    fn last(what: String) -> HelperError {
        HelperError { what, temporary: false }
    }

    fn temporary(what: String) -> HelperError {
        HelperError { what, temporary: true }
    }
}

/// The search path of helpers, and their time limit.
#[derive(Clone, Debug)]
pub struct Helpers {
    dirs: Vec<PathBuf>,
    deadline: Duration,
}

impl Helpers {
    pub fn usual() -> Self {
        // A relative directory would depend on the working directory of this process.
        let dirs = search_path().into_iter().filter(|dir| dir.is_absolute()).collect();
        Self { dirs, deadline: DEADLINE }
    }

    pub fn at(dirs: Vec<PathBuf>, deadline: Duration) -> Self {
        Self { dirs, deadline }
    }

    /// The answer of the helper `name` about `server`. The error is one line without secrets.
    pub async fn get(&self, name: &str, server: &str) -> Result<Option<RegistryCredential>, HelperError> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            let what = format!("{name:?} is no name of a helper program (expected letters, digits, '-', '_', '.')");
            return Err(HelperError::last(what));
        }
        let program = format!("docker-credential-{name}");
        let Some(path) = self.dirs.iter().map(|d| d.join(&program)).find(|p| is_executable(p)) else {
            return Err(HelperError::last(format!("{program} is not installed here")));
        };
        let (code, stdout) = match run(&path, server, self.deadline).await {
            Ok(ended) => ended,
            Err(CommandError::Spawn { source, .. } | CommandError::Io { source, .. }) => {
                return Err(HelperError::temporary(format!("{program} could not be run: {source}")));
            }
            // The output, which these errors may contain, is not shown.
            Err(error @ CommandError::Deadline { .. }) => return Err(HelperError::temporary(error.to_string())),
            Err(error @ (CommandError::Missing { .. } | CommandError::Flood { .. })) => {
                return Err(HelperError::last(error.to_string()));
            }
        };
        match code {
            Some(0) => parse(stdout.expose_secret()).map_err(|what| HelperError::last(format!("{program}: {what}"))),
            code => match reason(stdout.expose_secret()) {
                Some(NOT_FOUND) => Ok(None),
                reason => {
                    let how = code.map_or("was killed by a signal".into(), |c| format!("ended with status {c}"));
                    let said = reason.map_or("without a reason".into(), |r| format!("saying {r:?}"));
                    // It may have had no network. What it said has no fixed form.
                    Err(HelperError::temporary(format!(
                        "{program} {how}, {said} (its standard error is not read, because secrets may be in it)"
                    )))
                }
            },
        }
    }
}

/// The status (`None`: a signal) and the output.
async fn run(program: &Path, server: &str, deadline: Duration) -> Result<(Option<i32>, SecretBytes), CommandError> {
    let output = Command::new(program, deadline)
        .arg("get")
        .keep_env(|name| KEPT_ENV.contains(&name) || KEPT_ENV_OF_CLOUDS.iter().any(|cloud| name.starts_with(cloud)))
        .current_dir("/")
        .stdin(server.as_bytes().to_vec())
        .stdout_limit(LIMIT)
        .ignore_stderr()
        .run()
        .await?;
    Ok((output.status.code(), SecretBytes::new(Box::new(output.stdout))))
}

type SecretBytes = secrecy::SecretBox<Vec<u8>>;

/// The output of a failed helper, if it can be a message: one short line of text that is not JSON.
fn reason(stdout: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(stdout).ok()?.trim();
    let fit = !text.is_empty() && text.len() <= 200 && !text.starts_with(['{', '[', '"']) && !text.contains('\n');
    (fit && !text.chars().any(char::is_control)).then_some(text)
}

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "Username")]
    username: String,
    #[serde(rename = "Secret")]
    secret: SecretString,
}

/// The content is not shown, because it may be the secret.
fn parse(stdout: &[u8]) -> Result<Option<RegistryCredential>, String> {
    let expected = |found: &str, at: String| {
        format!(
            "expected a JSON object with the strings Username and Secret on standard output, found {found} ({} bytes, not shown{at})",
            stdout.len()
        )
    };
    match stdout.trim_ascii().first() {
        Some(b'{') => {}
        None => return Err(expected("nothing", String::new())),
        // Checked here, because the parser would accept an array for a structure, too.
        Some(_) => return Err(expected("something else", String::new())),
    }
    let reply: Reply = serde_json::from_slice(stdout).map_err(|e| {
        let found = match e.classify() {
            serde_json::error::Category::Data => "JSON of another shape",
            serde_json::error::Category::Eof => "JSON that ends too soon",
            _ => "something else",
        };
        expected(found, format!("; line {}, column {}", e.line(), e.column()))
    })?;
    if reply.username == IDENTITY_TOKEN {
        return Err("it gave an identity token, which is not supported: log in with a user's name and a password or access token".into());
    }
    match (reply.username.is_empty(), reply.secret.expose_secret().is_empty()) {
        // Some helpers report missing credentials in this way.
        (true, true) => Ok(None),
        (false, false) => {
            Ok(Some(RegistryCredential { username: reply.username, secret: reply.secret, expires_at: None }))
        }
        (true, false) => Err("it gave a secret without a user's name".into()),
        (false, true) => Err("it gave a user's name without a secret".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_read() {
        let text = br#"{"ServerURL":"https://x","Username":"AWS","Secret":"p:\"w"}
"#;
        let credential = parse(text).unwrap().unwrap();
        assert_eq!((credential.username.as_str(), credential.secret.expose_secret()), ("AWS", "p:\"w"));
        assert!(parse(br#"{"Username":"","Secret":""}"#).unwrap().is_none());
    }

    #[test]
    fn what_is_no_reply_is_refused_without_being_shown() {
        for (text, expected) in [
            ("", "found nothing"),
            ("hunter2", "something else"),
            ("warning\n{\"Username\":\"a\",\"Secret\":\"hunter2\"}", "something else"),
            ("{\"Username\":\"a\",\"Secret\":\"hunter2\"} x", "something else"),
            ("{\"Username\":\"a\",\"Secret\":\"hunter2\"", "ends too soon"),
            ("{\"Username\":\"a\",\"hunter2\":1}", "another shape"),
            ("{\"Username\":\"hunter2\",\"Secret\":[\"hunter2\"]}", "another shape"),
            ("{\"Username\":\"a\",\"Secret\":\"hunter2\",\"Secret\":\"hunter2\"}", "another shape"),
            ("[\"a\",\"hunter2\"]", "something else"),
            ("null", "something else"),
            (" \n", "found nothing"),
            ("{\"Username\":\"<token>\",\"Secret\":\"hunter2\"}", "identity token"),
            ("{\"Username\":\"\",\"Secret\":\"hunter2\"}", "without a user's name"),
            ("{\"Username\":\"hunter2\",\"Secret\":\"\"}", "without a secret"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(!error.contains("hunter2") && !error.contains('\n'), "{error}");
        }
        assert!(parse(&[b'"', 0xff, b'"']).is_err());
    }

    #[test]
    fn a_reason_is_one_short_line() {
        assert_eq!(reason(b" no agent \n"), Some("no agent"));
        for none in ["", "\n", "{\"Secret\":\"x\"}", "[1]", "\"x\"", "two\nlines", "esc\u{1b}[0m"] {
            assert_eq!(reason(none.as_bytes()), None, "{none:?}");
        }
        assert_eq!(reason(&[b'x'; 201]), None);
        assert_eq!(reason(&[0xff]), None);
    }

    #[tokio::test]
    async fn a_name_is_no_path() {
        let helpers = Helpers::at(vec!["/bin".into()], DEADLINE);
        for name in ["", "../x", "a/b", "a b", "a\0"] {
            let error = helpers.get(name, "ghcr.io").await.unwrap_err();
            assert!(error.what.contains("is no name of a helper") && !error.temporary, "{name:?}");
        }
        let missing = helpers.get("no-such-helper", "ghcr.io").await.unwrap_err();
        let what = "docker-credential-no-such-helper is not installed here".to_owned();
        assert_eq!(missing, HelperError { what, temporary: false });
    }
}
