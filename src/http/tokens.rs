//! API tokens. The secret of a token is only in the response that creates it.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use jiff::Timestamp;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Admin, AdminOrLocal, Allowed},
    extract::{Json, Name},
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::domain::{
    Code, TokenId,
    token::{ApiToken, NewToken, TokenScope},
    token_limits::TokenLimits,
};

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenRequest {
    /// Unique among tokens that are not revoked.
    #[schema(example = "autoscaler", min_length = 1, max_length = 63, pattern = "^[A-Za-z0-9._-]+$")]
    name: String,
    scope: TokenScope,
    /// When the token stops working (RFC 3339); default: when it is revoked.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// What vms may be created with it; only for the scope `create`. Default: every vm.
    #[serde(default)]
    limits: Option<TokenLimits>,
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
    /// Null: valid until it is revoked.
    expires_at: Option<Time>,
    /// The last request with it. A crash of the service may lose the last minute; null: none.
    last_used_at: Option<Time>,
    /// Null: none.
    limits: Option<TokenLimits>,
}

impl From<ApiToken> for TokenView {
    fn from(token: ApiToken) -> Self {
        Self {
            id: token.id,
            name: token.name,
            scope: token.scope,
            created_at: token.created_at.into(),
            revoked_at: token.revoked_at.map(Time),
            expires_at: token.expires_at.map(Time),
            last_used_at: token.last_used_at.map(Time),
            limits: token.limits,
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
///
/// A name that an expired token had is free.
#[utoipa::path(
    post, path = "/tokens", tag = "tokens",
    request_body(content = TokenRequest, examples(
        ("limited" = (summary = "For one team", value = json!(examples::token_request()))),
        ("unlimited" = (summary = "Without limits", value = json!({"name": "autoscaler", "scope": "create"})))
    )),
    responses((status = 201, description = "The token and its secret, which is shown only this once", body = CreatedToken, example = json!(examples::created_token()))),
    security(("token" = ["admin"])),
)]
pub async fn create_token(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Json(request): Json<TokenRequest>,
) -> Result<(StatusCode, Answer<CreatedToken>), Problem> {
    let TokenRequest { name, scope, expires_at, limits } = request;
    let (token, secret) = http.services.tokens.create(NewToken { name, scope, expires_at, limits }).await?;
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

/// Read a token's record
#[utoipa::path(
    get, path = "/tokens/{id}", tag = "tokens",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 200, description = "The token's record, without its secret", body = TokenView, example = json!(examples::token()))),
    security(("token" = ["admin"])),
)]
pub async fn get_token(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(id): Name,
) -> Result<Answer<TokenView>, Problem> {
    Ok(Answer(http.services.tokens.get(token_id(&id)?).await?.into()))
}

fn token_id(id: &str) -> Result<TokenId, Problem> {
    id.parse().map_err(|_| Problem::new(Code::TokenNotFound, format!("no token has the id {id:?} (ids are UUIDs)")))
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
    Ok(Answer(http.services.tokens.revoke(token_id(&id)?).await?.into()))
}

/// Replace the admin token of the service's machine
///
/// Revokes the token `local-admin`, and writes a new one to `admin.token` in the data directory, where the command line on that
/// machine finds it. The answer is the new token's record, without its secret. Over the socket `admin.sock` in the data
/// directory, no token is needed.
#[utoipa::path(
    post, path = "/tokens/local-admin/rotate", tag = "tokens",
    responses((status = 200, description = "The record of the new token", body = TokenView, example = json!(examples::local_token()))),
    security(("token" = ["admin"])),
)]
pub async fn rotate_local_token(
    FromState(http): FromState<Arc<Http>>,
    _: AdminOrLocal,
) -> Result<Answer<TokenView>, Problem> {
    Ok(Answer(http.services.local_admin.rotate().await?.into()))
}
