//! Letting a template follow a tag.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{
    Http,
    auth::{Admin, Allowed, Read},
    extract::{Json, Name},
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::domain::{
    Fault, PullId,
    pull::{Canary, Watch},
};

/// Which tag a template is to follow.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// An image with a tag: `host/namespace:tag`. Of the repository that the template comes from.
    #[schema(example = "ghcr.io/cirruslabs/macos-tahoe-base:latest")]
    image: String,
    /// How often the registry is asked, give or take a tenth; less often while it does not answer.
    #[serde(default = "hourly")]
    #[schema(minimum = 60, maximum = 2592000, default = 3600)]
    every_seconds: u32,
    /// What a vm of a new version has to pass before the name moves.
    canary: Option<Canary>,
}

fn hourly() -> u32 {
    3600
}

/// A template that follows a tag.
#[derive(Serialize, ToSchema)]
#[schema(as = Watch)]
pub struct WatchView {
    template: String,
    image: String,
    every_seconds: u32,
    canary: Option<Canary>,
    created_at: Time,
    /// When the registry was last asked.
    looked_at: Option<Time>,
    next_look_at: Time,
    /// The image that the tag pointed at when it was last acted on; null while it has not moved.
    image_digest: Option<String>,
    /// The pull that this led to.
    #[schema(value_type = Option<String>, format = "uuid")]
    pull: Option<PullId>,
    /// Why the last look failed.
    error: Option<Fault>,
    /// Looks that failed in a row.
    failures: u32,
}

impl From<Watch> for WatchView {
    fn from(w: Watch) -> Self {
        Self {
            template: w.template,
            image: w.image,
            every_seconds: w.every_seconds,
            canary: w.canary,
            created_at: w.created_at.into(),
            looked_at: w.looked_at.map(Time),
            next_look_at: w.next_look_at.into(),
            image_digest: w.image_digest,
            pull: w.pull,
            error: w.fault,
            failures: w.failures,
        }
    }
}

/// Let a template follow a tag
///
/// The tag is looked up from time to time; when it has moved, the new version is pulled in the background, with
/// the settings of the present one, and the name moves to it. Replaces what it followed before. The template may be missing:
/// it is pulled then.
#[utoipa::path(
    put, path = "/templates/{name}/watch", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "macos")),
    request_body(content = WatchRequest, example = json!(examples::watch_request())),
    responses((status = 200, description = "It follows the tag", body = WatchView, example = json!(examples::watch()))),
    security(("token" = ["admin"])),
)]
pub async fn set_watch(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(asked): Json<WatchRequest>,
) -> Result<Answer<WatchView>, Problem> {
    let watch = http.service.set_watch(name, asked.image, asked.every_seconds, asked.canary).await?;
    Ok(Answer(watch.into()))
}

/// Read which tag a template follows
#[utoipa::path(
    get, path = "/templates/{name}/watch", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "macos")),
    responses((status = 200, description = "What it follows, and what came of it", body = WatchView, example = json!(examples::watch()))),
    security(("token" = ["read"])),
)]
pub async fn get_watch(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Name(name): Name,
) -> Result<Answer<WatchView>, Problem> {
    Ok(Answer(http.service.get_watch(&name).await?.into()))
}

/// Let a template follow nothing any more
#[utoipa::path(
    delete, path = "/templates/{name}/watch", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "macos")),
    responses((status = 204, description = "It stays as it is. A pull under way goes on.")),
    security(("token" = ["admin"])),
)]
pub async fn remove_watch(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    http.service.remove_watch(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
