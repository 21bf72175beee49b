//! Prunes templates.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::super::{
    Http,
    auth::{Admin, Allowed},
    extract::Json,
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::domain::version::{self, HeldKind, Pruned};

/// What may be removed. A version that a name points at, that a live vm was cloned from or that is pinned is always
/// kept.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PruneRequest)]
pub struct PruneTemplatesRequest {
    /// Show what would be removed, and remove nothing.
    #[serde(default)]
    dry_run: bool,
    /// Only versions that were not used for this long.
    #[serde(default)]
    older_than_seconds: u64,
    /// How many previous versions of each name are kept for a rollback; default: 1.
    #[schema(minimum = 0, maximum = 10)]
    keep_previous: Option<u32>,
    /// Remove only until all templates together are no larger than this, longest unused first. Default: remove
    /// everything that may be removed.
    max_bytes: Option<u64>,
    /// Also interrupted pulls that are not in progress.
    #[serde(default)]
    partial: bool,
}

/// A version or an interrupted pull.
#[derive(Serialize, ToSchema)]
#[schema(as = PruneItem)]
pub struct HeldView {
    kind: HeldKind,
    /// Digest of the version, or of the image of an interrupted pull.
    digest: String,
    /// Names that point at it, or pointed at it before.
    names: Vec<String>,
    /// Its size on disk. Blocks may be shared with other files by copy-on-write, so this is the most that removing
    /// it frees.
    bytes: u64,
    last_used_at: Time,
    /// Why it is removed or kept.
    why: String,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Pruned)]
pub struct PrunedView {
    /// `true`: nothing was removed.
    dry_run: bool,
    /// Longest unused first.
    removed: Vec<HeldView>,
    kept: Vec<HeldView>,
    /// Size of everything that was removed: an upper bound, see `bytes`.
    freed_bytes: u64,
    /// Size of all templates and pulls before.
    total_bytes: u64,
    /// Free space afterwards on the disk with the templates.
    available_bytes: u64,
}

impl From<version::VersionUsage> for HeldView {
    fn from(h: version::VersionUsage) -> Self {
        Self {
            kind: h.kind,
            digest: h.digest,
            names: h.names,
            bytes: h.bytes,
            last_used_at: h.last_used_at.into(),
            why: h.why,
        }
    }
}

impl From<Pruned> for PrunedView {
    fn from(p: Pruned) -> Self {
        let views = |held: Vec<version::VersionUsage>| held.into_iter().map(HeldView::from).collect();
        Self {
            dry_run: p.dry_run,
            removed: views(p.removed),
            kept: views(p.kept),
            freed_bytes: p.freed_bytes,
            total_bytes: p.total_bytes,
            available_bytes: p.available_bytes,
        }
    }
}

/// Remove versions that nothing needs
///
/// A version is kept as long as a name points at it, a live vm was cloned from it, a pin keeps it, or a name may be
/// rolled back to it. Of the others, the longest unused are removed first. The answer gives the reason for each
/// version.
#[utoipa::path(
    post, path = "/templates/prune", tag = "templates",
    request_body(content = PruneTemplatesRequest, example = json!({ "dry_run": true, "older_than_seconds": 604800 })),
    responses((status = 200, description = "What was removed, or would be", body = PrunedView, example = json!(examples::pruned()))),
    security(("token" = ["admin"])),
)]
pub async fn prune_templates(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Json(request): Json<PruneTemplatesRequest>,
) -> Result<Answer<PrunedView>, Problem> {
    permit.disable_timeout();
    for (pointer, given) in
        [("/max_bytes", request.max_bytes), ("/older_than_seconds", Some(request.older_than_seconds))]
    {
        if given.is_some_and(|n| i64::try_from(n).is_err()) {
            return Err(Problem::invalid(pointer, format!("expected 0 to {}", i64::MAX)));
        }
    }
    let keep_previous = request.keep_previous.unwrap_or(1);
    if keep_previous > 10 {
        return Err(Problem::invalid("/keep_previous", "expected 0 to 10: no more are remembered"));
    }
    let request = version::PruneRequest {
        dry_run: request.dry_run,
        older_than_seconds: request.older_than_seconds,
        keep_previous: keep_previous as usize,
        max_bytes: request.max_bytes,
        partial_older_than_seconds: request.partial.then_some(0),
    };
    Ok(Answer(http.services.templates.prune(&request).await?.into()))
}
