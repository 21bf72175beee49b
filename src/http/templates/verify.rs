//! Reading every byte of a version.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState};
use serde::Serialize;
use utoipa::ToSchema;

use super::super::{
    Http,
    auth::{Admin, Allowed},
    extract::Name,
    frame::Seat,
    openapi::examples,
    problem::Problem,
};
use crate::domain::version::{FileFault, Verified};

/// What reading every byte found.
#[derive(Serialize, ToSchema)]
#[schema(as = Verified)]
pub struct VerifiedView {
    name: String,
    digest: String,
    /// Every byte is what it should be.
    sound: bool,
    /// Of all its files.
    bytes: u64,
    /// Of these, what is on disk; the rest are holes, which are zeros and cost little.
    bytes_read: u64,
    /// The parts that are not what their digests say.
    faults: Vec<FileFault>,
    /// What to do now, if something is wrong.
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
/// Reads every byte of its files from the disk and compares it with the digests it was published with; one template at a time,
/// so it may wait its turn and takes as long as the disk needs. Nothing is repaired. A damaged template is marked: no vm is made
/// from it and no pull takes anything from it until it was pulled or registered again, or found to be sound after all. Closing
/// the connection stops it.
#[utoipa::path(
    post, path = "/templates/{name}/verify", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    responses((status = 200, description = "What was found", body = VerifiedView, example = json!(examples::verified()))),
    security(("token" = ["admin"])),
)]
pub async fn verify_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    seat: Seat,
    Name(name): Name,
) -> Result<Answer<VerifiedView>, Problem> {
    seat.unhurried();
    Ok(Answer(http.service.verify_template(&name).await?.into()))
}
