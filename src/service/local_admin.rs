//! The admin token of the command line on this machine, in a file of the data directory.
//!
//! It is replaced in three steps: the new one is written beside the file, the database accepts it in place of the old one, and
//! the file is renamed. A process that dies between them leaves what `finish` completes at the next start.

use std::{io, path::PathBuf, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use tokio::sync::Mutex;

use super::tokens::Tokens;
use crate::{
    domain::{
        Code, Error, Result,
        token::{ApiToken, NewToken, TokenScope},
    },
    platform::{files, tasks::blocking_io},
    store::vault,
};

/// Its name among the tokens.
const LOCAL_ADMIN: &str = "local-admin";

/// What a start found or did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalAdminToken {
    Kept,
    Written,
    /// The file holds something else than a valid token. It is left as it is: an administrator may have revoked the token on purpose.
    NotValid,
}

#[derive(Clone)]
pub struct LocalAdmin {
    tokens: Tokens,
    file: PathBuf,
    /// The file has one writer at a time.
    turn: Arc<Mutex<()>>,
}

impl LocalAdmin {
    pub fn new(tokens: Tokens, file: PathBuf) -> Self {
        Self { tokens, file, turn: Arc::default() }
    }

    fn next(&self) -> PathBuf {
        self.file.with_extension("token.next")
    }

    /// At a start: completes what the last process began, and creates the token if there is no file.
    pub async fn ensure(&self) -> Result<LocalAdminToken> {
        let _turn = self.turn.lock().await;
        self.finish().await?;
        match self.read(self.file.clone()).await? {
            None => {
                self.replace().await?;
                Ok(LocalAdminToken::Written)
            }
            Some(token) if self.is_valid(&token).await? => Ok(LocalAdminToken::Kept),
            Some(_) => Ok(LocalAdminToken::NotValid),
        }
    }

    /// Revokes the token, and writes a new one to the file.
    pub async fn rotate(&self) -> Result<ApiToken> {
        let _turn = self.turn.lock().await;
        self.finish().await?;
        let token = self.replace().await?;
        tracing::info!(token.id = %token.id, path = %self.file.display(), "the admin token of this machine was replaced");
        Ok(token)
    }

    async fn replace(&self) -> Result<ApiToken> {
        let secret = vault::mint_api_token();
        let (next, text) = (self.next(), format!("{}\n", secret.expose_secret()));
        blocking_io(move || files::replace(&next, text.as_bytes())).await.map_err(|error| self.failed(&error))?;
        let token = self.tokens.replace(NewToken::new(LOCAL_ADMIN, TokenScope::Admin), &secret).await?;
        self.rename().await?;
        Ok(token)
    }

    /// The database says whether the next token is the one that counts.
    async fn finish(&self) -> Result<()> {
        match self.read(self.next()).await? {
            None => Ok(()),
            Some(token) if self.is_valid(&token).await? => self.rename().await,
            Some(_) => {
                let next = self.next();
                let removed = blocking_io(move || files::ignore_not_found(std::fs::remove_file(next))).await;
                removed.map_err(|error| self.failed(&error))
            }
        }
    }

    async fn is_valid(&self, token: &SecretString) -> Result<bool> {
        match self.tokens.authenticate(token).await {
            Ok(_) => Ok(true),
            Err(error) if error.code == Code::AuthRequired => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn rename(&self) -> Result<()> {
        let (next, file) = (self.next(), self.file.clone());
        let renamed = blocking_io(move || {
            std::fs::rename(&next, &file)?;
            file.parent().map_or(Ok(()), files::sync_dir)
        });
        renamed.await.map_err(|error| self.failed(&error))
    }

    async fn read(&self, path: PathBuf) -> Result<Option<SecretString>> {
        match blocking_io(move || std::fs::read_to_string(path)).await {
            Ok(text) => Ok(Some(text.trim().to_owned().into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::internal(format!("{}: {error}", self.file.display()))
    }
}
