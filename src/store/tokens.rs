//! API tokens. Only the SHA-256 of a token's secret is stored: the secrets are long and random, so a slow hash has no
//! advantage.

use jiff::Timestamp;

use super::{Ledger, Reader, Result, rows::unreadable};
use crate::domain::{
    Code, Error, TokenId,
    token::{ApiToken, TokenScope},
};

struct Row {
    id: String,
    name: String,
    scope: String,
    created_at: i64,
    revoked_at: Option<i64>,
}

fn time(millis: i64) -> Result<Timestamp> {
    Timestamp::from_millisecond(millis).map_err(|e| unreadable(format!("a time: {e}")))
}

impl TryFrom<Row> for ApiToken {
    type Error = super::StoreError;
    fn try_from(row: Row) -> Result<ApiToken> {
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
        })
    }
}

impl Reader {
    /// The valid token with this hash.
    pub async fn token_by_hash(&self, hash: &[u8; 32]) -> Result<Option<ApiToken>> {
        let hash = hash.as_slice();
        sqlx::query_as!(
            Row,
            "SELECT id, name, scope, created_at, revoked_at FROM tokens WHERE hash = ? AND revoked_at IS NULL",
            hash
        )
        .fetch_optional(self.pool())
        .await?
        .map(ApiToken::try_from)
        .transpose()
    }

    pub async fn tokens(&self) -> Result<Vec<ApiToken>> {
        sqlx::query_as!(Row, "SELECT id, name, scope, created_at, revoked_at FROM tokens ORDER BY created_at, id")
            .fetch_all(self.pool())
            .await?
            .into_iter()
            .map(ApiToken::try_from)
            .collect()
    }
}

impl Ledger {
    pub async fn add_token(&self, token: ApiToken, hash: [u8; 32]) -> Result<ApiToken> {
        self.writer
            .write(move |db| {
                Box::pin(async move {
                    let taken = sqlx::query!("SELECT id FROM tokens WHERE name = ? AND revoked_at IS NULL", token.name)
                        .fetch_optional(&mut *db)
                        .await?;
                    if taken.is_some() {
                        return Err(Error::new(Code::TokenNameInUse, format!("a token is named {:?}", token.name))
                            .field("/name", "choose a name that no live token has")
                            .into());
                    }
                    let id = token.id.to_string();
                    let scope = token.scope.as_str();
                    let created_at = token.created_at.as_millisecond();
                    let hash = hash.as_slice();
                    sqlx::query!(
                        "INSERT INTO tokens (id, name, scope, hash, created_at) VALUES (?, ?, ?, ?, ?)",
                        id,
                        token.name,
                        scope,
                        hash,
                        created_at
                    )
                    .execute(&mut *db)
                    .await?;
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
                        "SELECT id, name, scope, created_at, revoked_at FROM tokens WHERE id = ?",
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
