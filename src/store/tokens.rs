//! API tokens. Only the SHA-256 of a token's secret is stored: the secrets are long and random, so a slow hash has no
//! advantage.

use std::{collections::HashMap, sync::Arc};

use jiff::Timestamp;
use parking_lot::Mutex;
use sqlx::SqliteConnection;

use super::{Ledger, Reader, Result, rows::unreadable};
use crate::domain::{
    Code, Error, TokenId,
    token::{ApiToken, TokenScope},
};

/// When tokens were used, as far as it is not stored yet. A request only notes it here; a loop stores it from time to time.
#[derive(Clone, Debug, Default)]
pub struct TokenUses(Arc<Mutex<HashMap<TokenId, Timestamp>>>);

impl TokenUses {
    pub fn note(&self, id: TokenId, at: Timestamp) {
        self.0.lock().entry(id).and_modify(|last| *last = at.max(*last)).or_insert(at);
    }

    pub fn of(&self, id: TokenId) -> Option<Timestamp> {
        self.0.lock().get(&id).copied()
    }

    fn pending(&self) -> Vec<(TokenId, Timestamp)> {
        self.0.lock().iter().map(|(id, at)| (*id, *at)).collect()
    }

    /// Keeps what was noted after these.
    fn forget(&self, stored: &[(TokenId, Timestamp)]) {
        let mut uses = self.0.lock();
        for (id, at) in stored {
            if uses.get(id) == Some(at) {
                uses.remove(id);
            }
        }
    }
}

struct Row {
    id: String,
    name: String,
    scope: String,
    created_at: i64,
    revoked_at: Option<i64>,
    expires_at: Option<i64>,
    last_used_at: Option<i64>,
    limits: Option<String>,
}

fn time(millis: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|e| unreadable(format!("a time: {e}")))
}

impl TryFrom<Row> for ApiToken {
    type Error = super::StoreError;
    fn try_from(row: Row) -> Result<ApiToken> {
        // Limits that cannot be read refuse the token: without them it would be allowed more.
        let limits = row.limits.as_deref().map(serde_json::from_str).transpose();
        Ok(ApiToken {
            id: row.id.parse().map_err(|e| unreadable(format!("a token's id: {e}")))?,
            name: row.name,
            scope: match row.scope.as_str() {
                "admin" => TokenScope::Admin,
                "create" => TokenScope::Create,
                "read" => TokenScope::Read,
                other => return Err(unreadable(format!("scope {other:?}"))),
            },
            created_at: time(row.created_at)?,
            revoked_at: row.revoked_at.map(time).transpose()?,
            expires_at: row.expires_at.map(time).transpose()?,
            last_used_at: row.last_used_at.map(time).transpose()?,
            limits: limits.map_err(|e| unreadable(format!("a token's limits: {e}")))?,
        })
    }
}

impl Reader {
    /// The token with this hash, if it is not revoked. It may have expired.
    pub async fn token_by_hash(&self, hash: &[u8; 32]) -> Result<Option<ApiToken>> {
        let hash = hash.as_slice();
        sqlx::query_as!(
            Row,
            "SELECT id, name, scope, created_at, revoked_at, expires_at, last_used_at, limits FROM tokens
              WHERE hash = ? AND revoked_at IS NULL",
            hash
        )
        .fetch_optional(self.pool())
        .await?
        .map(ApiToken::try_from)
        .transpose()
    }

    pub async fn token(&self, id: TokenId) -> Result<Option<ApiToken>> {
        let id = id.to_string();
        sqlx::query_as!(
            Row,
            "SELECT id, name, scope, created_at, revoked_at, expires_at, last_used_at, limits FROM tokens WHERE id = ?",
            id
        )
        .fetch_optional(self.pool())
        .await?
        .map(ApiToken::try_from)
        .transpose()
    }

    pub async fn tokens(&self) -> Result<Vec<ApiToken>> {
        sqlx::query_as!(
            Row,
            "SELECT id, name, scope, created_at, revoked_at, expires_at, last_used_at, limits FROM tokens
              ORDER BY created_at, id"
        )
        .fetch_all(self.pool())
        .await?
        .into_iter()
        .map(ApiToken::try_from)
        .collect()
    }
}

async fn insert(db: &mut SqliteConnection, token: &ApiToken, hash: &[u8; 32]) -> Result<()> {
    let limits = token.limits.as_ref().map(serde_json::to_string).transpose();
    let limits = limits.map_err(|e| unreadable(e.to_string()))?;
    let (id, scope) = (token.id.to_string(), token.scope.as_str());
    let created_at = token.created_at.as_millisecond();
    let expires_at = token.expires_at.map(|at| at.as_millisecond());
    let hash = hash.as_slice();
    sqlx::query!(
        "INSERT INTO tokens (id, name, scope, hash, created_at, expires_at, limits) VALUES (?, ?, ?, ?, ?, ?, ?)",
        id,
        token.name,
        scope,
        hash,
        created_at,
        expires_at,
        limits
    )
    .execute(db)
    .await?;
    Ok(())
}

impl Ledger {
    /// Stores when tokens were used.
    pub async fn store_uses(&self, uses: &TokenUses) -> Result<()> {
        let pending = uses.pending();
        if pending.is_empty() {
            return Ok(());
        }
        let stored = self
            .writer
            .write(move |db| {
                Box::pin(async move {
                    for (id, at) in &pending {
                        let (id, at) = (id.to_string(), at.as_millisecond());
                        sqlx::query!("UPDATE tokens SET last_used_at = ? WHERE id = ?", at, id)
                            .execute(&mut *db)
                            .await?;
                    }
                    Ok::<_, super::StoreError>(pending)
                })
            })
            .await?;
        uses.forget(&stored);
        Ok(())
    }

    pub async fn add_token(&self, token: ApiToken, hash: [u8; 32]) -> Result<ApiToken> {
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let created_at = token.created_at.as_millisecond();
                    // A token that has expired does not keep its name.
                    sqlx::query!(
                        "UPDATE tokens SET revoked_at = expires_at WHERE name = ? AND revoked_at IS NULL AND expires_at <= ?",
                        token.name,
                        created_at
                    )
                    .execute(&mut *db)
                    .await?;
                    let taken = sqlx::query!("SELECT id FROM tokens WHERE name = ? AND revoked_at IS NULL", token.name)
                        .fetch_optional(&mut *db)
                        .await?;
                    if taken.is_some() {
                        return Err(Error::new(Code::TokenNameInUse, format!("a token is named {:?}", token.name))
                            .field("/name", "choose a name that no live token has")
                            .into());
                    }
                    insert(db, &token, &hash).await?;
                    Ok(token)
                })
            })
            .await
    }

    /// Adds the token, and revokes every other one with its name.
    pub async fn replace_tokens(&self, token: ApiToken, hash: [u8; 32]) -> Result<ApiToken> {
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let at = token.created_at.as_millisecond();
                    sqlx::query!(
                        "UPDATE tokens SET revoked_at = ? WHERE name = ? AND revoked_at IS NULL",
                        at,
                        token.name
                    )
                    .execute(&mut *db)
                    .await?;
                    insert(db, &token, &hash).await?;
                    Ok(token)
                })
            })
            .await
    }

    /// Revoking twice is no error. The record stays, so that token ids in the log can be resolved.
    pub async fn revoke_token(&self, id: TokenId, at: Timestamp) -> Result<ApiToken> {
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let key = id.to_string();
                    let at = at.as_millisecond();
                    sqlx::query!("UPDATE tokens SET revoked_at = ? WHERE id = ? AND revoked_at IS NULL", at, key)
                        .execute(&mut *db)
                        .await?;
                    let row = sqlx::query_as!(
                        Row,
                        "SELECT id, name, scope, created_at, revoked_at, expires_at, last_used_at, limits FROM tokens WHERE id = ?",
                        key
                    )
                    .fetch_optional(&mut *db)
                    .await?;
                    row.ok_or_else(|| Error::new(Code::TokenNotFound, format!("no token has the id {id}")))?.try_into()
                })
            })
            .await
    }
}
