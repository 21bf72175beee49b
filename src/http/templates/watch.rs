//! Watches: templates that follow a tag.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{
    Http,
    auth::{Admin, Allowed, Read},
    extract::{Json, Name},
    fault::FaultView,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::domain::{
    Fault, PullId,
    pull::{Canary, Watch},
};

/// The tag that a template follows.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// Image with a tag: `host/namespace:tag`, from the repository that the template comes from.
    #[schema(example = "ghcr.io/cirruslabs/macos-tahoe-base:latest")]
    image: String,
    /// How often the tag is checked, varied by up to a tenth; less often while the registry does not answer.
    #[serde(default = "hourly")]
    #[schema(minimum = 60, maximum = 2592000, default = 3600)]
    every_seconds: u32,
    /// Test that a vm of a new version must pass before the name moves.
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
    /// When the tag was last checked.
    looked_at: Option<Time>,
    next_look_at: Time,
    /// The image of the tag's last move that led to a pull; null if the tag has not moved yet.
    image_digest: Option<String>,
    /// The pull that this started.
    #[schema(value_type = Option<String>, format = "uuid")]
    pull: Option<PullId>,
    /// Why the last check failed.
    #[schema(value_type = Option<Fault>)]
    error: Option<FaultView>,
    /// Consecutive failed checks.
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
            error: w.fault.as_ref().map(FaultView::from),
            failures: w.failures,
        }
    }
}

/// Make a template follow a tag
///
/// The tag is checked regularly. When it has moved, the new version is pulled in the background, with the settings
/// of the current one, and the name moves to it. Replaces an earlier watch of this template. If the template does
/// not exist, it is pulled.
#[utoipa::path(
    put, path = "/templates/{name}/watch", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "macos")),
    request_body(content = WatchRequest, example = json!(examples::watch_request())),
    responses((status = 200, description = "The template follows the tag", body = WatchView, example = json!(examples::watch()))),
    security(("token" = ["admin"])),
)]
pub async fn set_watch(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(asked): Json<WatchRequest>,
) -> Result<Answer<WatchView>, Problem> {
    let watch = http.services.watches.set(name, asked.image, asked.every_seconds, asked.canary).await?;
    Ok(Answer(watch.into()))
}

/// Read which tag a template follows
#[utoipa::path(
    get, path = "/templates/{name}/watch", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "macos")),
    responses((status = 200, description = "The watch and its result", body = WatchView, example = json!(examples::watch()))),
    security(("token" = ["read"])),
)]
pub async fn get_watch(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Name(name): Name,
) -> Result<Answer<WatchView>, Problem> {
    Ok(Answer(http.services.watches.get(&name).await?.into()))
}

/// Stop following a tag
#[utoipa::path(
    delete, path = "/templates/{name}/watch", tag = "templates",
    params(("name" = String, Path, description = "Name", example = "macos")),
    responses((status = 204, description = "The template no longer follows a tag. A pull in progress continues.")),
    security(("token" = ["admin"])),
)]
pub async fn remove_watch(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    http.services.watches.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
