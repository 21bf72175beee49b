//! Authenticates callers, and manages API tokens.

use std::sync::Arc;

use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    domain::{
        Code, Error, Result, TokenId,
        token::{ApiToken, Caller, CallerToken, NewToken},
    },
    parts::Parts,
    platform::Clock,
    store::{Ledger, Reader, Vault, tokens::TokenUses, vault},
};

#[derive(Clone)]
pub struct Tokens {
    ledger: Ledger,
    reader: Reader,
    vault: Arc<Vault>,
    uses: TokenUses,
    clock: Clock,
}

impl Tokens {
    pub fn new(parts: &Parts) -> Self {
        let Parts { ledger, reader, vault, token_uses: uses, clock, .. } = parts.clone();
        Self { ledger, reader, vault, uses, clock }
    }

    /// The caller that this token belongs to. A token that never existed and a revoked one get the same answer.
    pub async fn authenticate(&self, token: &SecretString) -> Result<Caller> {
        if let Some((vm, role)) = self.vault.vm_of_token(token) {
            return Ok(Caller::Guest(vm, role));
        }
        let Some(token) = self.reader.token_by_hash(&vault::hash_token(token)).await? else {
            return Err(Error::new(Code::AuthRequired, "the token is not known, or it was revoked"));
        };
        let now = self.clock.now();
        // The caller has the secret, so the time tells nothing to others.
        if let Some(at) = token.expires_at.filter(|at| *at <= now) {
            return Err(Error::new(Code::AuthRequired, format!("the token {} has expired at {at:.0}", token.name)));
        }
        self.uses.note(token.id, now);
        let ApiToken { id, scope, limits, .. } = token;
        Ok(Caller::Token(CallerToken { id, scope, limits: limits.map(Arc::new) }))
    }

    /// A new token and its secret, which cannot be read again.
    pub async fn create(&self, new: NewToken) -> Result<(ApiToken, SecretString)> {
        let secret = vault::mint_api_token();
        let token = self.ledger.add_token(self.record(new)?, vault::hash_token(&secret)).await?;
        tracing::info!(token.id = %token.id, token.name = %token.name, token.scope = token.scope.as_str(), "token created");
        Ok((token, secret))
    }

    /// A new token with this secret, in place of every token with its name: they are revoked.
    pub(super) async fn replace(&self, new: NewToken, secret: &SecretString) -> Result<ApiToken> {
        Ok(self.ledger.replace_tokens(self.record(new)?, vault::hash_token(secret)).await?)
    }

    fn record(&self, new: NewToken) -> Result<ApiToken> {
        let now = self.clock.now();
        new.check(now)?;
        let NewToken { name, scope, expires_at, limits } = new;
        Ok(ApiToken {
            id: TokenId(Uuid::now_v7()),
            name,
            scope,
            created_at: now,
            revoked_at: None,
            expires_at,
            last_used_at: None,
            limits,
        })
    }

    pub async fn list(&self) -> Result<Vec<ApiToken>> {
        Ok(self.reader.tokens().await?.into_iter().map(|token| self.with_last_use(token)).collect())
    }

    pub async fn get(&self, id: TokenId) -> Result<ApiToken> {
        let token = self.reader.token(id).await?;
        token
            .map(|token| self.with_last_use(token))
            .ok_or_else(|| Error::new(Code::TokenNotFound, format!("no token has the id {id}")))
    }

    fn with_last_use(&self, mut token: ApiToken) -> ApiToken {
        token.last_used_at = token.last_used_at.max(self.uses.of(token.id));
        token
    }

    pub async fn revoke(&self, id: TokenId) -> Result<ApiToken> {
        let token = self.ledger.revoke_token(id, self.clock.now()).await?;
        tracing::info!(token.id = %token.id, token.name = %token.name, "token revoked");
        Ok(self.with_last_use(token))
    }
}
