//! The REST API: one request at a time, the status numbers and messages of version 54.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    http::{HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use tokio::{net::UnixListener, sync::Mutex};

use crate::{Chain, config::VmConfig, control::Control, vmm::Vmm};

const LARGEST_BODY: usize = 4 << 20;

type Shared = (Arc<Mutex<Vmm>>, Control);

pub async fn serve(listener: UnixListener, vmm: Arc<Mutex<Vmm>>, control: Control) {
    let router = Router::new().fallback(handle).layer(DefaultBodyLimit::max(LARGEST_BODY)).with_state((vmm, control));
    let _ = axum::serve(listener, router).await;
}

/// Returns when no request is under way and the last answer had time to leave.
pub async fn idle(vmm: &Mutex<Vmm>) {
    drop(vmm.lock().await);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
}

async fn handle(State((vmm, control)): State<Shared>, method: Method, uri: Uri, body: Bytes) -> Response {
    let name = uri.path().strip_prefix("/api/v1/").unwrap_or_default().to_owned();
    let control = control.again();
    if control.hangs.contains(&name) {
        control.note_unanswered(&name);
        return std::future::pending().await;
    }
    let mut response = match control.answers.get(&name) {
        Some(answer) => {
            let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, answer.body.clone()).into_response()
        }
        None => answer(&mut *vmm.lock().await, &method, &name, &body).await,
    };
    if control.silent.contains(&name) {
        control.note_unanswered(&name);
        return std::future::pending().await;
    }
    let status = response.status();
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("Cloud Hypervisor API"));
    if status == StatusCode::NO_CONTENT {
        headers.remove(header::CONTENT_TYPE);
    } else {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}

async fn answer(vmm: &mut Vmm, method: &Method, name: &str, body: &[u8]) -> Response {
    let bad_request = || (StatusCode::BAD_REQUEST, r#"["Bad Request"]"#).into_response();
    match (name, method) {
        ("vmm.ping", &Method::GET) => (StatusCode::OK, vmm.ping().to_string()).into_response(),
        ("vm.info", &Method::GET) => match vmm.info() {
            Ok(info) => (StatusCode::OK, info.to_string()).into_response(),
            Err(chain) => refused("The VM info is not available", chain),
        },
        ("vm.create", &Method::PUT) if body.is_empty() => StatusCode::BAD_REQUEST.into_response(),
        ("vm.create", &Method::PUT) => match serde_json::from_slice::<VmConfig>(body) {
            Ok(config) => done("The VM could not be created", vmm.create(config)),
            Err(error) => {
                let chain = ["Failed to deserialize JSON".to_owned(), error.to_string()];
                (StatusCode::BAD_REQUEST, serde_json::json!(chain).to_string()).into_response()
            }
        },
        (
            "vm.boot" | "vm.shutdown" | "vm.reboot" | "vm.delete" | "vm.pause" | "vm.resume" | "vm.power-button",
            &Method::PUT,
        ) if !body.is_empty() => bad_request(),
        ("vm.boot", &Method::PUT) => done("The VM could not boot", vmm.boot().await),
        ("vm.shutdown", &Method::PUT) => done("The VM could not shutdown", vmm.shut_down().await),
        ("vm.reboot", &Method::PUT) => done("The VM could not reboot", vmm.reboot().await),
        ("vm.delete", &Method::PUT) => done("The VM could not be deleted", vmm.delete().await),
        ("vm.pause", &Method::PUT) => done("The VM could not be paused", vmm.pause(true).await),
        ("vm.resume", &Method::PUT) => done("The VM could not resume", vmm.pause(false).await),
        ("vm.power-button", &Method::PUT) => done("Error triggering power button", vmm.press_power_button().await),
        // Not 204, as all others.
        ("vmm.shutdown", &Method::PUT) => match vmm.request_shutdown().await {
            Ok(()) => StatusCode::OK.into_response(),
            Err(chain) => refused("The VMM could not shutdown", chain),
        },
        ("vmm.ping" | "vm.info" | "vmm.shutdown", _) => bad_request(),
        (
            "vm.create" | "vm.boot" | "vm.shutdown" | "vm.reboot" | "vm.delete" | "vm.pause" | "vm.resume"
            | "vm.power-button",
            method,
        ) => match *method {
            Method::GET => bad_request(),
            _ => StatusCode::BAD_REQUEST.into_response(),
        },
        _ => (StatusCode::NOT_FOUND, r#"["Not Found"]"#).into_response(),
    }
}

fn done(what: &str, result: Result<(), Chain>) -> Response {
    match result {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(chain) => refused(what, chain),
    }
}

fn refused(what: &str, chain: Chain) -> Response {
    let status = match chain.first().map(String::as_str) {
        Some("VM is not created" | "VM config is missing") => StatusCode::NOT_FOUND,
        Some("Failed to validate config") if chain.last().is_some_and(|text| text.ends_with(" is not unique")) => {
            StatusCode::CONFLICT
        }
        Some("Failed to validate config") => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let messages: Vec<String> = ["Error from API".to_owned(), what.to_owned()].into_iter().chain(chain).collect();
    (status, serde_json::json!(messages).to_string()).into_response()
}
