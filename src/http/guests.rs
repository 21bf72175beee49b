//! What a guest says of its own vm.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};

use super::{Http, auth::OwnVm, extract::Json, problem::Problem};
use crate::service::guests::GuestEvent;

/// Report an event from inside the guest
///
/// For the kit in the guest, with the vm's own token. Reports may come late, doubled or out of order.
#[utoipa::path(
    post, path = "/vms/{id}/events", tag = "guest",
    params(("id" = String, Path, format = "uuid")),
    request_body(content = GuestEvent, examples(
        ("ready" = (value = json!({"type": "guest_ready"}))),
        ("result" = (value = json!({"type": "job_result", "exit_code": 0}))),
        ("log" = (value = json!({"type": "log", "source": "job", "data_base64": "aGVsbG8K"})))
    )),
    responses((status = 202, description = "Taken note of")),
    security(("vm_token" = [])),
)]
pub async fn report_guest_event(
    State(http): State<Arc<Http>>,
    OwnVm(id): OwnVm,
    Json(report): Json<GuestEvent>,
) -> Result<StatusCode, Problem> {
    http.service.report_guest_event(id, report).await?;
    Ok(StatusCode::ACCEPTED)
}
