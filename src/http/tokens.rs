//! API tokens. The secret of a token is only in the response that creates it.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Admin, Allowed},
    extract::{Json, Name},
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::domain::{
    Code, TokenId,
    token::{ApiToken, TokenScope},
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Unique among tokens that are not revoked.
    #[schema(example = "autoscaler", min_length = 1, max_length = 63, pattern = "^[A-Za-z0-9._-]+$")]
    name: String,
    scope: TokenScope,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Token)]
pub struct TokenView {
    #[schema(value_type = String, format = "uuid")]
    id: TokenId,
    name: String,
    scope: TokenScope,
    created_at: Time,
    /// Null while the token is valid.
    revoked_at: Option<Time>,
}

impl From<ApiToken> for TokenView {
    fn from(token: ApiToken) -> Self {
        Self {
            id: token.id,
            name: token.name,
            scope: token.scope,
            created_at: token.created_at.into(),
            revoked_at: token.revoked_at.map(Time),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct CreatedToken {
    #[serde(flatten)]
    record: TokenView,
    /// The secret. It is not stored and cannot be shown again.
    token: String,
}

#[derive(Serialize, ToSchema)]
pub struct TokenList {
    items: Vec<TokenView>,
}

/// Create a token
#[utoipa::path(
    post, path = "/tokens", tag = "tokens",
    request_body(content = TokenRequest, example = json!({"name": "autoscaler", "scope": "create"})),
    responses((status = 201, description = "The token and its secret, which is shown only this once", body = CreatedToken, example = json!(examples::created_token()))),
    security(("token" = ["admin"])),
)]
pub async fn create_token(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Json(request): Json<TokenRequest>,
) -> Result<(StatusCode, Answer<CreatedToken>), Problem> {
    let (token, secret) = http.services.tokens.create(request.name, request.scope).await?;
    let answer = CreatedToken { record: token.into(), token: secret.expose_secret().to_owned() };
    Ok((StatusCode::CREATED, Answer(answer)))
}

/// List tokens
#[utoipa::path(
    get, path = "/tokens", tag = "tokens",
    responses((status = 200, description = "All tokens, including revoked ones", body = TokenList, example = json!({"items": [examples::token()]}))),
    security(("token" = ["admin"])),
)]
pub async fn list_tokens(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
) -> Result<Answer<TokenList>, Problem> {
    let items = http.services.tokens.list().await?.into_iter().map(TokenView::from).collect();
    Ok(Answer(TokenList { items }))
}

/// Revoke a token
///
/// Takes effect at once and is final. Repeating it changes nothing.
#[utoipa::path(
    delete, path = "/tokens/{id}", tag = "tokens",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 200, description = "The token's record", body = TokenView, example = json!(examples::token()))),
    security(("token" = ["admin"])),
)]
pub async fn revoke_token(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(id): Name,
) -> Result<Answer<TokenView>, Problem> {
    let id: TokenId = id
        .parse()
        .map_err(|_| Problem::new(Code::TokenNotFound, format!("no token has the id {id:?} (ids are UUIDs)")))?;
    Ok(Answer(http.services.tokens.revoke(id).await?.into()))
}
