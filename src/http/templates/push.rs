//! Pushes a template to a registry.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{
    Http,
    auth::{Admin, Allowed},
    extract::{Json, Name},
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
};
use crate::service::transfers::{PushRequest, Pushed, ReferenceError};

/// More than any registry accepts in one request.
const LARGEST_PART_MB: u64 = 100_000;

/// The destination of a push.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PushRequest)]
pub struct PushTemplateRequest {
    /// The image, with a tag: `host/namespace:tag`.
    #[schema(example = "registry.example.com/ci/micro:1")]
    image: String,
    /// Upload in parts of this many megabytes (1,000,000 bytes), for registries that do not accept large requests.
    /// Default: each blob is one request.
    #[schema(minimum = 1, maximum = 100000, example = json!(null))]
    chunk_size_mb: Option<u64>,
}

/// A pushed image.
#[derive(Serialize, ToSchema)]
#[schema(as = PushedImage)]
pub struct PushedView {
    /// With its tag.
    image: String,
    /// `sha256:…` of the image's manifest: pulling by it always gives the same bytes, even if the tag moves.
    digest: String,
    bytes_uploaded: u64,
    /// Layers that the registry had already, or copied from another repository.
    bytes_reused: u64,
    layers: usize,
}

impl From<Pushed> for PushedView {
    fn from(pushed: Pushed) -> Self {
        Self {
            image: pushed.image.to_string(),
            digest: pushed.digest.to_string(),
            bytes_uploaded: pushed.bytes_uploaded,
            bytes_reused: pushed.bytes_reused,
            layers: pushed.layers,
        }
    }
}

/// Push a template
///
/// A template of the driver tart is pushed in Tart's format, so Tart can pull it too; templates of other drivers
/// are pushed in Mayfly's format. Keys and passwords are never part of the image. Content that the registry has is
/// not uploaded again, so a repeated request continues an interrupted push, and changes nothing if the content is
/// the same. The answer comes when the image is complete in the registry.
#[utoipa::path(
    post, path = "/templates/{name}/push", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    request_body(content = PushTemplateRequest, example = json!(examples::push_request())),
    responses((status = 200, description = "The image is in the registry", body = PushedView, example = json!(examples::pushed()))),
    security(("token" = ["admin"])),
)]
pub async fn push_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Name(name): Name,
    Json(request): Json<PushTemplateRequest>,
) -> Result<Answer<PushedView>, Problem> {
    permit.disable_timeout();
    let image = request.image.parse();
    let image = image.map_err(|error: ReferenceError| Problem::invalid("/image", error.to_string()))?;
    if request.chunk_size_mb.is_some_and(|mb| !(1..=LARGEST_PART_MB).contains(&mb)) {
        return Err(Problem::invalid("/chunk_size_mb", format!("must be 1 to {LARGEST_PART_MB}")));
    }
    let part_size = request.chunk_size_mb.map(|mb| mb * 1_000_000);
    Ok(Answer(http.services.transfers.push(PushRequest { template: name, image, part_size }).await?.into()))
}
