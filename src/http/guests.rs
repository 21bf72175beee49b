//! Reports of guests about their own vms.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use secrecy::ExposeSecret as _;
use tokio_util::io::ReaderStream;

use super::{
    Http,
    auth::{OfWrapper, OwnVm},
    extract::Json,
    middleware::RequestPermit,
    problem::Problem,
};
use crate::{
    domain::{Error, GuestRole},
    service::guests::GuestEvent,
};

/// Report an event from inside the guest
///
/// For the bootstrap bundle in the guest, with a token of the vm. Reports may arrive late, repeated or out of order.
///
/// A guest has two tokens: the wrapper's, and the job's, which only allows `runner_online`, `job_started` and
/// `job_result`.
#[utoipa::path(
    post, path = "/vms/{id}/events", tag = "guest",
    params(("id" = String, Path, format = "uuid")),
    request_body(content = GuestEvent, examples(
        ("ready" = (value = json!({"type": "guest_ready"}))),
        ("configured" = (value = json!({"type": "guest_configured", "attempt": 1, "separate_users": true}))),
        ("checked" = (value = json!({"type": "guest_checked", "attempt": 1, "version": "0.100.1"}))),
        ("result" = (value = json!({"type": "job_result", "exit_code": 0}))),
        ("log" = (value = json!({"type": "log", "source": "job", "data_base64": "aGVsbG8K"})))
    )),
    responses((status = 202, description = "Accepted; for `guest_configured`: the runner may be started")),
    security(("vm_token" = [])),
)]
pub async fn report_guest_event(
    State(http): State<Arc<Http>>,
    OwnVm { id, role }: OwnVm,
    Json(report): Json<GuestEvent>,
) -> Result<StatusCode, Problem> {
    let guests = &http.services.guests;
    match role {
        GuestRole::Wrapper => guests.report(id, report).await?,
        GuestRole::Job => guests.report_of_job(id, report).await?,
    }
    Ok(StatusCode::ACCEPTED)
}

/// Get the registration of the CI system's runner
///
/// For the guest of a vm with a runner of kind `github`, `gitea` or `buildkite` that is provisioned by a seed: the seed does not contain
/// the registration, because the guest can read the seed as long as it runs. Available until the guest may start
/// its runner (`guest_configured` was answered with 202), and refused with 410 afterwards.
#[utoipa::path(
    get, path = "/vms/{id}/registration", tag = "guest",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 200, description = "The just-in-time configuration or the registration token (`github`), the content of the file `.runner` (`gitea`), or the id of a job, a space and a token for it (`buildkite`)", body = String, content_type = "text/plain")),
    security(("vm_token" = [])),
)]
pub async fn get_runner_registration(
    State(http): State<Arc<Http>>,
    OfWrapper(id): OfWrapper,
) -> Result<([(header::HeaderName, &'static str); 1], String), Problem> {
    let secret = http.services.guests.runner_registration(id).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], secret.expose_secret().to_owned()))
}

/// Download GitHub's runner
///
/// For the guest of a vm with a runner of kind `github` whose template contains no usable runner: the archive that
/// the configuration names for its platform. At the first request the host downloads it, which may take a while.
#[utoipa::path(
    get, path = "/vms/{id}/runner", tag = "guest",
    params(("id" = String, Path, format = "uuid")),
    responses((status = 200, description = "The archive as GitHub publishes it", body = String, content_type = "application/gzip")),
    security(("vm_token" = [])),
)]
pub async fn get_runner_program(
    State(http): State<Arc<Http>>,
    OwnVm { id, .. }: OwnVm,
    permit: RequestPermit,
) -> Result<Response, Problem> {
    permit.disable_timeout();
    let path = http.services.guests.runner_program(id).await?;
    let file = tokio::fs::File::open(&path).await.map_err(Error::internal)?;
    let length = file.metadata().await.map_err(Error::internal)?.len();
    let headers = [(header::CONTENT_TYPE, "application/gzip".to_owned()), (header::CONTENT_LENGTH, length.to_string())];
    Ok((headers, Body::from_stream(ReaderStream::new(file))).into_response())
}
