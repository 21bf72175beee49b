//! Exports a template into another program's layout.

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
use crate::service::transfers::{ExportDestination, ExportRequest, Notice, Policy, TemplateLayout, WrittenFile};

/// Destination and format of an export.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ExportRequest)]
pub struct ExportBody {
    layout: TemplateLayout,
    /// Absolute path that must not exist. It becomes a directory for `tart`, `shoes-vz` and `macosvm`, else an
    /// image. `qcow2` and `raw` can also be written to S3: `s3://bucket/key`.
    #[schema(example = "/Users/ci/vms/sequoia")]
    path: String,
    /// Whether the export keeps the machine's identity; default: `keep`. A new identity changes the guest's serial
    /// number.
    identity: Option<Policy>,
    /// Whether the export keeps the Ethernet address; default: `regenerate`.
    mac: Option<Policy>,
    /// In S3: replace an existing object. On the host, nothing is ever overwritten.
    #[serde(default)]
    overwrite: bool,
}

impl ExportBody {
    fn into_request(self) -> Result<ExportRequest, Problem> {
        for (pointer, given) in [("/identity", self.identity.is_some()), ("/mac", self.mac.is_some())] {
            if given && self.layout.is_image() {
                let what = format!("means nothing to the layout {}: leave it out", self.layout.as_str());
                return Err(Problem::invalid(pointer, what));
            }
        }
        Ok(ExportRequest {
            layout: self.layout,
            to: ExportDestination::parse(&self.path)?.overwriting(self.overwrite)?,
            identity: self.identity.unwrap_or(Policy::Keep),
            mac: self.mac.unwrap_or(Policy::Regenerate),
        })
    }
}

#[derive(Serialize, ToSchema)]
pub struct ExportedFile {
    path: String,
    bytes: u64,
}

#[derive(Serialize, ToSchema)]
pub struct ExportedTemplate {
    files: Vec<ExportedFile>,
    /// Settings that were changed or left out.
    notices: Vec<Notice>,
}

/// Export a template
///
/// Into the layout of Tart, shoes-vz or macosvm, or as a disk image, on the service's host, or as a disk image in
/// S3. The export appears only when it is complete, and overwrites nothing unless `overwrite` is set. Only the
/// service's user may read the files.
#[utoipa::path(
    post, path = "/templates/{name}/export", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    request_body(content = ExportBody, example = json!(examples::export_request())),
    responses((status = 200, description = "The export is complete", body = ExportedTemplate, example = json!(examples::exported()))),
    security(("token" = ["admin"])),
)]
pub async fn export_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Name(name): Name,
    Json(body): Json<ExportBody>,
) -> Result<Answer<ExportedTemplate>, Problem> {
    permit.disable_timeout();
    let exported = http.services.transfers.export(&name, body.into_request()?).await?;
    let file = |WrittenFile { path, bytes }| ExportedFile { path: path.to_string_lossy().into_owned(), bytes };
    Ok(Answer(ExportedTemplate { files: exported.files.into_iter().map(file).collect(), notices: exported.notices }))
}
