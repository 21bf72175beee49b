//! How the host and this process find each other: the conventions of go-plugin.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tokio::net::UnixListener;

use crate::platform::files;

/// Set by myshoes for its plugin, and by nothing else.
pub const COOKIE_VARIABLE: &str = "SHOES_PLUGIN_MAGIC_COOKIE";
const COOKIE: &str = "are_you_a_shoes?";
/// Of the interface between myshoes and its plugins.
const APPLICATION_VERSION: &str = "1";

/// Whether the environment is that of a plugin of myshoes; otherwise why not.
pub(super) fn check(variable: impl Fn(&str) -> Option<OsString>) -> Result<(), String> {
    let text = |name: &str| variable(name).unwrap_or_default().to_string_lossy().into_owned();
    let cookie = text(COOKIE_VARIABLE);
    if cookie != COOKIE {
        let what = if cookie.is_empty() { "is not set" } else { "has another value than that of myshoes" };
        return Err(format!(
            "this is a plugin of myshoes, and myshoes starts it: {COOKIE_VARIABLE} {what}; name a copy of this program as PLUGIN \
             in the environment of myshoes (docs/myshoes.md)"
        ));
    }
    let versions = text("PLUGIN_PROTOCOL_VERSIONS");
    if !versions.is_empty() && !versions.split(',').any(|version| version.trim() == APPLICATION_VERSION) {
        return Err(format!(
            "PLUGIN_PROTOCOL_VERSIONS: this plugin has version {APPLICATION_VERSION}, and the host {versions:.60?}"
        ));
    }
    if !text("PLUGIN_CLIENT_CERT").is_empty() {
        return Err(
            "PLUGIN_CLIENT_CERT: the host asks for TLS, which myshoes does not use, and this plugin has none".into()
        );
    }
    Ok(())
}

/// A socket that only this user can connect to. Removed when it is dropped.
pub(super) struct PluginSocket {
    pub listener: UnixListener,
    path: PathBuf,
    /// The directory that was made for it.
    directory: Option<PathBuf>,
}

impl PluginSocket {
    /// In the host's directory if it has one for sockets, else in a private one.
    pub fn bind(directory: Option<OsString>) -> io::Result<Self> {
        let name = format!("mayfly-shoes-{}", &uuid::Uuid::new_v4().simple().to_string()[..12]);
        match directory.filter(|directory| !directory.is_empty()) {
            Some(directory) => Self::at(std::path::absolute(directory)?.join(name), None),
            None => {
                let temporary = std::path::absolute(std::env::temp_dir())?;
                // A path of a socket has at most 104 bytes on macOS, and the temporary directory may be deep.
                Self::in_private(&temporary.join(&name)).or_else(|_| Self::in_private(&Path::new("/tmp").join(&name)))
            }
        }
    }

    fn in_private(directory: &Path) -> io::Result<Self> {
        files::create_private_dir(directory)?;
        let bound = Self::at(directory.join("socket"), Some(directory.to_owned()));
        if bound.is_err() {
            let _ = std::fs::remove_dir(directory);
        }
        bound
    }

    fn at(path: PathBuf, directory: Option<PathBuf>) -> io::Result<Self> {
        if path.to_str().is_none_or(|path| path.contains(['|', '\n'])) {
            return Err(io::Error::other("the path of the socket cannot be written in one field of a line"));
        }
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path, directory })
    }

    /// Tells the host where to connect. The first line of standard output, and the only one.
    pub fn announce(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        writeln!(out, "1|{APPLICATION_VERSION}|unix|{}|grpc|", self.path.display())?;
        out.flush()
    }
}

impl Drop for PluginSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        if let Some(directory) = &self.directory {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_environment_of_myshoes_is_accepted() {
        let check = |variables: &[(&str, &str)]| {
            check(|name| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value)))
        };
        let cookie = (COOKIE_VARIABLE, COOKIE);
        check(&[cookie]).unwrap();
        check(&[cookie, ("PLUGIN_PROTOCOL_VERSIONS", "2,1"), ("PLUGIN_CLIENT_CERT", "")]).unwrap();
        for (variables, named) in [
            (&[][..], "is not set"),
            (&[(COOKIE_VARIABLE, "hush")], "has another value"),
            (&[cookie, ("PLUGIN_PROTOCOL_VERSIONS", "2,11")], "PLUGIN_PROTOCOL_VERSIONS"),
            (&[cookie, ("PLUGIN_CLIENT_CERT", "hush")], "PLUGIN_CLIENT_CERT"),
        ] {
            let error = check(variables).unwrap_err();
            assert!(error.contains(named) && !error.contains("hush"), "{error}");
        }
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let own = PluginSocket::bind(None).unwrap();
        let (path, directory) = (own.path.clone(), own.directory.clone().unwrap());
        assert_eq!((mode(&path), mode(&directory)), (0o600, 0o700));
        assert!(path.as_os_str().len() < 104 && path.is_absolute(), "{}", path.display());
        drop(own);
        assert!(!directory.exists());
        let named = PluginSocket::bind(Some(dir.path().into())).unwrap();
        assert!(named.path.starts_with(dir.path()) && mode(&named.path) == 0o600);
        drop(named);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
