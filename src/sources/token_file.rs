//! The token of a client of a CI server, from a file that may get another one.

use std::path::{Path, PathBuf};

use parking_lot::RwLock;
use reqwest::header::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};

use crate::platform::files::read_secret;

pub(super) struct TokenFile {
    path: PathBuf,
    /// The kind of token, for messages.
    kind: &'static str,
    token: RwLock<SecretString>,
}

impl TokenFile {
    pub fn read(path: &Path, kind: &'static str) -> Result<TokenFile, String> {
        let token = RwLock::new(read(path, kind)?);
        Ok(TokenFile { path: path.to_owned(), kind, token })
    }

    /// The value of the header `authorization`.
    pub fn authorization(&self, scheme: &str) -> HeaderValue {
        let text = Zeroizing::new(format!("{scheme} {}", self.token.read().expose_secret()));
        let mut value = HeaderValue::from_str(&text).expect("a token is visible ASCII");
        value.set_sensitive(true);
        value
    }

    /// Reads the file again. Returns whether the token changed. A file that cannot be used changes nothing.
    pub fn reload(&self) -> bool {
        let Ok(loaded) = read(&self.path, self.kind) else { return false };
        let mut token = self.token.write();
        let changed = token.expose_secret() != loaded.expose_secret();
        *token = loaded;
        changed
    }
}

fn read(path: &Path, kind: &str) -> Result<SecretString, String> {
    let text = read_secret(path)?;
    let token = text.expose_secret().trim();
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("{}: expected one line with an {kind}", path.display()));
    }
    Ok(token.into())
}
