//! Which service a command talks to, and which token it sends there.
//!
//! The service on this machine is reached over the socket in its data directory. Any local user can listen on a port while
//! the service is down, so the admin token of the data directory is sent over that socket only, and never to a URL.

use std::{
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use reqwest::Url;
use secrecy::SecretString;

use super::Error;
use crate::{
    config,
    platform::{data_dir::DataDir, http::is_loopback},
};

/// Which service to ask, and as whom. Empty texts count as not given.
#[derive(Clone, Debug, Default)]
pub struct ServiceOptions {
    pub url: Option<String>,
    pub token_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
    pub data_dir: Option<PathBuf>,
    pub names: OptionNames,
}

/// What messages call the options: a user of a configuration file is told its keys.
#[derive(Clone, Debug)]
pub struct OptionNames {
    pub url: String,
    pub token_file: String,
    pub ca_file: String,
    pub data_dir: String,
}

impl Default for OptionNames {
    fn default() -> Self {
        let [url, token_file, ca_file, data_dir] =
            ["--url", "--token-file", "--ca-file", "--data-dir"].map(str::to_owned);
        Self { url, token_file, ca_file, data_dir }
    }
}

impl OptionNames {
    fn give_a_token(&self) -> String {
        format!("give a token with MAYFLY_TOKEN or {}", self.token_file)
    }
}

#[derive(Clone)]
pub(super) struct ServiceEndpoint {
    pub base: Url,
    /// The Unix socket to connect to. `None`: TCP, to the address in `base`.
    pub socket: Option<PathBuf>,
    pub token: Option<SecretString>,
    /// Shown if the token is refused.
    pub token_hint: String,
    pub warning: Option<String>,
    pub names: OptionNames,
}

impl ServiceEndpoint {
    /// As the options and the environment say.
    pub fn of(options: &ServiceOptions) -> Result<ServiceEndpoint, Error> {
        match options.url.as_deref().filter(|url| !url.is_empty()) {
            Some(url) => at_url(url, options),
            None => on_this_machine(options),
        }
    }

    /// Whether what is sent stays on this machine.
    pub fn is_local(&self) -> bool {
        self.socket.is_some() || is_here(&self.base)
    }

    /// For messages.
    pub fn name(&self) -> String {
        match &self.socket {
            Some(socket) => socket.display().to_string(),
            None => self.base.authority().to_owned(),
        }
    }

    /// What to try when nothing answers.
    pub fn remedy(&self) -> String {
        let OptionNames { url, data_dir, .. } = &self.names;
        match &self.socket {
            Some(_) => format!(
                "start it with `mayfly serve`, or name another with {data_dir}, or with {url} and a token of its own"
            ),
            None if self.is_local() => {
                format!("start it with `mayfly serve`, or name another with {url} or MAYFLY_URL")
            }
            None => format!("see whether it runs, and whether {url} or MAYFLY_URL is right"),
        }
    }
}

fn is_here(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback)
}

fn at_url(url: &str, options: &ServiceOptions) -> Result<ServiceEndpoint, Error> {
    let base = Url::parse(url)
        .ok()
        .filter(|u| matches!(u.scheme(), "http" | "https") && u.has_host() && !u.cannot_be_a_base())
        .ok_or_else(|| {
            Error::Usage(format!("{}: expected a URL such as http://127.0.0.1:8470, found {url:?}", options.names.url))
        })?;
    if !base.username().is_empty() || base.password().is_some() {
        return Err(Error::Usage(format!(
            "{}: must not hold a user or password; use {} or MAYFLY_TOKEN",
            options.names.url, options.names.token_file
        )));
    }
    let here = is_here(&base);
    let give_a_token = options.names.give_a_token();
    let given = given_token(options)?;
    if given.is_none() && here {
        return Err(Error::NoToken(format!(
            "no token for {}: {give_a_token}, or leave out {} and MAYFLY_URL to reach the service over the socket in \
             its data directory ({}); the admin token of a data directory is not sent to a port, where any user \
             may listen",
            base.authority(),
            options.names.url,
            options.names.data_dir
        )));
    }
    let warning = (base.scheme() == "http" && !here && given.is_some())
        .then(|| format!("the token travels to {} in clear; use https", base.authority()));
    let (token, token_hint) = given.map_or((None, give_a_token), |(token, hint)| (Some(token), hint));
    Ok(ServiceEndpoint { base, socket: None, token, token_hint, warning, names: options.names.clone() })
}

fn on_this_machine(options: &ServiceOptions) -> Result<ServiceEndpoint, Error> {
    let dir = config::data_dir_or_default(options.data_dir.clone())
        .map_err(|error| Error::Usage(format!("{}: {error}", options.names.data_dir)))?;
    let data = DataDir::new(dir);
    let socket = data.admin_socket();
    check_socket(&socket, data.path(), &options.names)?;
    let (token, token_hint) = match given_token(options)? {
        Some((token, hint)) => (Some(token), hint),
        None => admin_token(&data.admin_token(), &options.names)?,
    };
    let base = Url::parse("http://localhost").expect("a URL");
    let names = options.names.clone();
    Ok(ServiceEndpoint { base, socket: Some(socket), token, token_hint, warning: None, names })
}

/// Refuses a socket that another user could have made.
fn check_socket(socket: &Path, dir: &Path, names: &OptionNames) -> Result<(), Error> {
    let unsafe_at = |path: &Path, why: String| {
        let path = path.display();
        Err(Error::Usage(format!("nothing is sent over {}: {path} {why}", socket.display())))
    };
    let OptionNames { url, data_dir, .. } = names;
    let away = |error: std::io::Error| {
        Error::Unreachable(match error.kind() {
            std::io::ErrorKind::NotFound => format!(
                "no service runs with the data directory {}; start it with `mayfly serve`, or name another with {data_dir}, \
                 or with {url} or MAYFLY_URL and a token of its own",
                dir.display()
            ),
            _ => format!(
                "cannot reach {}: {error}; run the command as the user of the service, or name a service with {url} or \
                 MAYFLY_URL and give a token for it",
                socket.display()
            ),
        })
    };
    let owner = std::fs::metadata(dir).map_err(away)?;
    let me = rustix::process::geteuid().as_raw();
    // Root may use the directory of another user: the token that is sent comes from that directory.
    if owner.uid() != me && me != 0 {
        return unsafe_at(dir, format!("belongs to the user {}, and this is {me}", owner.uid()));
    }
    let found = std::fs::symlink_metadata(socket).map_err(away)?;
    if !found.file_type().is_socket() {
        return unsafe_at(socket, "is not a socket".to_owned());
    }
    if found.uid() != owner.uid() {
        return unsafe_at(socket, format!("belongs to the user {}, its directory to {}", found.uid(), owner.uid()));
    }
    for (path, meta) in [(dir, &owner), (socket, &found)] {
        let mode = meta.permissions().mode() & 0o7777;
        if mode & 0o077 != 0 {
            return unsafe_at(path, format!("has mode {mode:04o}, so that other users may use it: chmod go= it"));
        }
    }
    Ok(())
}

/// The token that the caller gave, and a hint for the case that it is refused.
fn given_token(options: &ServiceOptions) -> Result<Option<(SecretString, String)>, Error> {
    if let Some(path) = options.token_file.as_deref().filter(|path| !path.as_os_str().is_empty()) {
        let token = std::fs::read_to_string(path)
            .map_err(|error| Error::Usage(format!("{}: {}: {error}", options.names.token_file, path.display())))?;
        return Ok(Some((usable(&token)?, format!("the token in {} is not accepted", path.display()))));
    }
    match std::env::var("MAYFLY_TOKEN").ok().filter(|token| !token.is_empty()) {
        Some(token) => Ok(Some((usable(&token)?, "the token in MAYFLY_TOKEN is not accepted".into()))),
        None => Ok(None),
    }
}

fn admin_token(path: &Path, names: &OptionNames) -> Result<(Option<SecretString>, String), Error> {
    match std::fs::read_to_string(path) {
        Ok(token) => {
            let hint = format!(
                "the token in {} is not accepted; `mayfly token rotate-local` writes a new one, or give another with \
                 MAYFLY_TOKEN or {}",
                path.display(),
                names.token_file
            );
            Ok((Some(usable(&token)?), hint))
        }
        Err(error) => Ok((
            None,
            format!(
                "no token: cannot read {} ({error}); `mayfly token rotate-local` writes one, or {}",
                path.display(),
                names.give_a_token()
            ),
        )),
    }
}

fn usable(token: &str) -> Result<SecretString, Error> {
    let token = token.trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(Error::Usage("the token must be one word of visible characters".into()));
    }
    Ok(SecretString::from(token))
}
