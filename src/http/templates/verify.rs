//! Verifies every byte of a version.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::{
    Http,
    auth::{Admin, Allowed},
    extract::Name,
    middleware::RequestPermit,
    openapi::examples,
    problem::Problem,
};
use crate::domain::version::{FileFault, Verified};

/// The result of a verification.
#[derive(Serialize, ToSchema)]
#[schema(as = Verified)]
pub struct VerifiedView {
    name: String,
    digest: String,
    /// Every byte matches its digest.
    sound: bool,
    /// Of all its files.
    bytes: u64,
    /// Part of it that is on disk; the rest are holes, which are zeros and need not be read.
    bytes_read: u64,
    /// The parts that do not match their digests.
    faults: Vec<FileFault>,
    /// What to do, if there is damage.
    next: Option<String>,
}

impl From<Verified> for VerifiedView {
    fn from(v: Verified) -> Self {
        let next = (!v.faults.is_empty()).then(|| {
            "no new vm is made from it until it is replaced: pull the image again, or register the template again from its \
             files; running vms are left alone, and may read what is damaged"
                .to_owned()
        });
        Self {
            name: v.name,
            digest: v.digest,
            sound: v.faults.is_empty(),
            bytes: v.bytes,
            bytes_read: v.bytes_read,
            faults: v.faults,
            next,
        }
    }
}

/// Verify a template
///
/// Reads every byte of its files from the disk and compares them with the digests of its publication. Only one
/// template is verified at a time, so the request may have to wait, and takes as long as the disk needs. Nothing is
/// repaired. A damaged template is marked: no vm is made from it and no pull reuses its content until it is pulled
/// or registered again, or a later verification finds no damage. Closing the connection stops the verification.
#[utoipa::path(
    post, path = "/templates/{name}/verify", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    responses((status = 200, description = "The result", body = VerifiedView, example = json!(examples::verified()))),
    security(("token" = ["admin"])),
)]
pub async fn verify_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Name(name): Name,
) -> Result<Answer<VerifiedView>, Problem> {
    permit.disable_timeout();
    Ok(Answer(http.services.templates.verify(&name).await?.into()))
}
