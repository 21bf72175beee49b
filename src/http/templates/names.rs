//! Names of templates, rollback, and pins.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{
        Http,
        auth::{Admin, Allowed},
        extract::{Json, Name},
        openapi::examples,
        problem::Problem,
    },
    TemplateView, shown,
};

/// The version that a name will point at.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PointRequest {
    /// `sha256:…` of a version on this host.
    digest: String,
    /// Shown in the name's history.
    why: Option<String>,
}

/// Point a name at a version
///
/// The name may be new: an alias, such as `macos-latest`. It moves in one step: a new vm gets either the old or the
/// new version, and existing vms keep theirs. The previous version is kept in the name's history for a rollback.
#[utoipa::path(
    put, path = "/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "micro-latest")),
    request_body(content = PointRequest, example = json!(examples::point_request())),
    responses(
        (status = 200, description = "The name points at the version", body = TemplateView, example = json!(examples::template())),
        (status = 201, description = "The name was created and points at the version", body = TemplateView, example = json!(examples::template())),
    ),
    security(("token" = ["admin"])),
)]
pub async fn point_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(request): Json<PointRequest>,
) -> Result<(StatusCode, Answer<TemplateView>), Problem> {
    let moved = http.services.templates.point_name(&name, &request.digest, request.why).await?;
    let status = if moved.from.is_none() { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Answer(shown(&http, &name).await?)))
}

/// The version to roll back to.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RollbackRequest {
    /// One of the name's `previous` versions. Default: the newest that is on this host and undamaged.
    to: Option<String>,
}

/// Roll back to a previous version
///
/// The name moves back in one step, and the version that it leaves becomes the newest of its previous versions, so
/// a second rollback undoes the first. Set `to` for an older version.
#[utoipa::path(
    post, path = "/templates/{name}/rollback", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "micro")),
    request_body(content = RollbackRequest, example = json!({})),
    responses((status = 200, description = "The version that the name points at now", body = TemplateView, example = json!(examples::template()))),
    security(("token" = ["admin"])),
)]
pub async fn roll_back_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(request): Json<RollbackRequest>,
) -> Result<Answer<TemplateView>, Problem> {
    http.services.templates.roll_back(&name, request.to.as_deref()).await?;
    Ok(Answer(shown(&http, &name).await?))
}

/// Why a version is kept.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    why: String,
}

/// Keep a version from being pruned
///
/// With a name, the version is pinned that the name points at now. Pinning again replaces the reason.
#[utoipa::path(
    put, path = "/templates/{name}/pin", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    request_body(content = PinRequest, example = json!({ "why": "the last one with Xcode 16" })),
    responses((status = 200, description = "The template", body = TemplateView, example = json!(examples::template()))),
    security(("token" = ["admin"])),
)]
pub async fn pin_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(request): Json<PinRequest>,
) -> Result<Answer<TemplateView>, Problem> {
    http.services.templates.pin(&name, &request.why).await?;
    Ok(Answer(shown(&http, &name).await?))
}

/// Allow a version to be pruned again
#[utoipa::path(
    delete, path = "/templates/{name}/pin", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    responses((status = 204, description = "The version is not pinned")),
    security(("token" = ["admin"])),
)]
pub async fn unpin_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    http.services.templates.unpin(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
