//! RunnerArchives that keep credentials: `docker-credential-NAME get`, told the server on standard input, answering with JSON.
//!
//! They come from elsewhere. So: a time limit, a limit on what is read, only standard output is believed, and standard error,
//! which some write their secrets to when they are asked to be verbose, is not read at all.

use std::{
    io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::timeout,
};

use super::RegistryCredential;

/// A token is a few KiB.
const LIMIT: u64 = 64 << 10;
/// Some ask a cloud, over a slow link; nobody sits there to answer a dialogue.
const DEADLINE: Duration = Duration::from_secs(20);
/// By the helpers' common library this is "I do not know", with a status that says failure.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// Instead of a user's name: the secret is a token to get others with, which Basic authentication cannot use.
const IDENTITY_TOKEN: &str = "<token>";

/// What a helper may see: how to find its own files, key rings, agents and cloud. Not what else this process was started with.
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

/// Where helpers are looked for, and how long they may take.
#[derive(Clone, Debug)]
pub struct Helpers {
    dirs: Vec<PathBuf>,
    deadline: Duration,
}

impl Helpers {
    /// `PATH`, and where Homebrew puts programs: that is missing from the `PATH` that launchd gives a service.
    pub fn usual() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = std::env::split_paths(&path)
            .chain(["/opt/homebrew/bin", "/usr/local/bin", "/usr/bin"].map(PathBuf::from))
            // A relative one would be looked for wherever this process happens to stand.
            .filter(|d| d.is_absolute())
            .collect();
        Self { dirs, deadline: DEADLINE }
    }

    pub fn at(dirs: Vec<PathBuf>, deadline: Duration) -> Self {
        Self { dirs, deadline }
    }

    /// What the helper called `name` says of `server`. The error is one line without secrets.
    pub async fn get(&self, name: &str, server: &str) -> Result<Option<RegistryCredential>, String> {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return Err(format!("{name:?} is no name of a helper program (expected letters, digits, '-', '_', '.')"));
        }
        let program = format!("docker-credential-{name}");
        let Some(path) = self.dirs.iter().map(|d| d.join(&program)).find(|p| is_executable(p)) else {
            return Err(format!("{program} is not installed here"));
        };
        let (code, stdout) = match timeout(self.deadline, run(&path, server)).await {
            Err(_) => return Err(format!("{program} did not finish within {} s", self.deadline.as_secs_f32())),
            Ok(Err(e)) => return Err(format!("{program} could not be run: {e}")),
            Ok(Ok(ended)) => ended,
        };
        if stdout.expose_secret().len() as u64 > LIMIT {
            return Err(format!("{program} wrote more than {} KiB", LIMIT >> 10));
        }
        match code {
            Some(0) => parse(stdout.expose_secret()).map_err(|what| format!("{program}: {what}")),
            code => match reason(stdout.expose_secret()) {
                Some(NOT_FOUND) => Ok(None),
                reason => {
                    let how = code.map_or("was killed by a signal".into(), |c| format!("ended with status {c}"));
                    let said = reason.map_or("without a reason".into(), |r| format!("saying {r:?}"));
                    Err(format!(
                        "{program} {how}, {said} (its standard error is not read, because secrets may be in it)"
                    ))
                }
            },
        }
    }
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Its status (`None`: a signal) and what it wrote, up to one byte more than it may.
async fn run(program: &Path, server: &str) -> io::Result<(Option<i32>, SecretBytes)> {
    let kept = std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|n| KEPT_ENV.contains(&n) || KEPT_ENV_OF_CLOUDS.iter().any(|c| n.starts_with(c)))
    });
    let mut child = Command::new(program)
        .arg("get")
        .env_clear()
        .envs(kept)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let mut group = HelperGroup(child.id().and_then(|id| Pid::from_raw(id as i32)));
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // One that does not want its input says so by its status, not by this broken pipe.
            let _ = stdin.write_all(server.as_bytes()).await;
        }
    };
    let read = async {
        let mut all = Vec::new();
        if let Some(stdout) = stdout {
            stdout.take(LIMIT + 1).read_to_end(&mut all).await?;
        }
        io::Result::Ok(all)
    };
    let ((), read) = tokio::join!(feed, read);
    let read = SecretBytes::new(Box::new(read?));
    if read.expose_secret().len() as u64 > LIMIT {
        // It may write on for ever; the group dies with this future.
        return Ok((None, read));
    }
    let status = child.wait().await?;
    // Reaped: the group's id may soon belong to strangers.
    group.0 = None;
    Ok((status.code(), read))
}

type SecretBytes = secrecy::SecretBox<Vec<u8>>;

/// Kills the helper and what it started, when it is not waited for any longer.
struct HelperGroup(Option<Pid>);

impl Drop for HelperGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// What a failed helper wrote, where that can be a message: one short line of text that is no JSON.
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

/// Nothing of what was found is shown: it may be the secret.
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
        // Not left to the parser: it takes an array for a structure, too.
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
        // The way in which some say that they know nothing.
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
            assert!(helpers.get(name, "ghcr.io").await.unwrap_err().contains("is no name of a helper"), "{name:?}");
        }
        let missing = helpers.get("no-such-helper", "ghcr.io").await.unwrap_err();
        assert_eq!(missing, "docker-credential-no-such-helper is not installed here");
    }
}
