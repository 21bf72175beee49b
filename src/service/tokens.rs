//! Authenticates callers, and manages API tokens.

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    domain::{
        Code, Error, Result, TokenId,
        token::{ApiToken, Caller, TokenScope},
    },
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader, Vault, vault},
};

#[derive(Clone)]
pub struct Tokens {
    ledger: Ledger,
    reader: Reader,
    vault: Arc<Vault>,
    clock: Clock,
}

impl Tokens {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, vault, clock, .. } = parts.clone();
        Self { ledger, reader, vault, clock }
    }

    /// The caller that this token belongs to. Every invalid token gets the same answer.
    pub async fn authenticate(&self, token: &SecretString) -> Result<Caller> {
        if let Some(vm) = self.vault.vm_of_token(token) {
            return Ok(Caller::Guest(vm));
        }
        match self.reader.token_by_hash(&vault::hash_token(token)).await? {
            Some(token) => Ok(Caller::Token { id: token.id, name: token.name, scope: token.scope }),
            None => Err(Error::new(Code::AuthRequired, "the token is not known, or it was revoked")),
        }
    }

    /// A new token and its secret, which cannot be read again.
    pub async fn create(&self, name: String, scope: TokenScope) -> Result<(ApiToken, SecretString)> {
        let plain = name.len() <= 63 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if name.is_empty() || !plain {
            return Err(Error::new(Code::RequestInvalid, "the token's name is not usable")
                .field("/name", "1 to 63 letters, digits, '.', '_' or '-'"));
        }
        let secret = vault::mint_api_token();
        let token =
            ApiToken { id: TokenId(Uuid::now_v7()), name, scope, created_at: self.clock.now(), revoked_at: None };
        let token = self.ledger.add_token(token, vault::hash_token(&secret)).await?;
        tracing::info!(token.id = %token.id, token.name = %token.name, token.scope = scope.as_str(), "token created");
        Ok((token, secret))
    }

    pub async fn list(&self) -> Result<Vec<ApiToken>> {
        Ok(self.reader.tokens().await?)
    }

    pub async fn revoke(&self, id: TokenId) -> Result<ApiToken> {
        let token = self.ledger.revoke_token(id, self.clock.now()).await?;
        tracing::info!(token.id = %token.id, token.name = %token.name, "token revoked");
        Ok(token)
    }
}
