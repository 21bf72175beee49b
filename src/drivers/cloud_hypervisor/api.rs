//! The REST API of one hypervisor, over its Unix socket: one connection for each request, all bounded in time and size.
//!
//! The hypervisor serves one request at a time. What a status means differs between versions, so callers decide by the state of
//! the vm and by the messages; versions before v47 answer with plain text instead of a list.

use std::{path::Path, time::Duration};

use reqwest::{Method, StatusCode};
use serde::Deserialize;

use super::config::VmConfig;
use crate::platform::{
    error_chain::error_chain,
    http::{ClientOptions, Trust, bounded_body},
};

/// The hypervisor answers within milliseconds, unless it is busy with another request.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// `vm.boot` reads the kernel and sets the memory up.
const BOOT: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(2);
/// `vm.info` of a booted vm has a few KiB.
const LARGEST_ANSWER: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum VmmApiError {
    /// It is not known whether the request was carried out.
    #[error("the hypervisor does not answer: {0}")]
    NoAnswer(String),
    /// Its messages, outermost first.
    #[error("the hypervisor refused {request} ({status}): {}", messages.join(": "))]
    Refused { request: String, status: u16, messages: Vec<String> },
    #[error("the hypervisor's answer to {request} was not understood: {why}")]
    NotUnderstood { request: String, why: String },
}

impl VmmApiError {
    /// Whether one of the messages is this one.
    pub fn says(&self, message: &str) -> bool {
        matches!(self, VmmApiError::Refused { messages, .. } if messages.iter().any(|said| said.contains(message)))
    }
}

/// The part of `vmm.ping` that is used.
#[derive(Debug, Deserialize)]
pub struct VmmPing {
    pub pid: Option<i64>,
}

/// The state of the vm. After `vm.shutdown` it is `Created` again, never `Shutdown`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmState {
    /// There is no configuration yet.
    None,
    /// Configured, and not booted.
    Created,
    /// It was booted: running, paused, or in a state of a later version.
    Booted,
}

#[derive(Deserialize)]
struct VmInfo {
    state: String,
}

pub async fn ping(socket: &Path) -> Result<VmmPing, VmmApiError> {
    json(Method::GET, "vmm.ping", socket).await
}

pub async fn state(socket: &Path) -> Result<VmState, VmmApiError> {
    match json::<VmInfo>(Method::GET, "vm.info", socket).await {
        Ok(info) if info.state == "Created" => Ok(VmState::Created),
        Ok(_) => Ok(VmState::Booted),
        // The second one is of versions up to v36.
        Err(error) if error.says("VM is not created") || error.says("VmNotCreated") => Ok(VmState::None),
        Err(error) => Err(error),
    }
}

pub async fn create(socket: &Path, config: &VmConfig) -> Result<(), VmmApiError> {
    let body = serde_json::to_vec(config)
        .map_err(|error| VmmApiError::NotUnderstood { request: "vm.create".to_owned(), why: error.to_string() })?;
    request(Method::PUT, "vm.create", Some(body), PATIENCE, socket).await.map(|_| ())
}

pub async fn boot(socket: &Path) -> Result<(), VmmApiError> {
    request(Method::PUT, "vm.boot", None, BOOT, socket).await.map(|_| ())
}

/// Presses the power button. The guest may ignore it.
pub async fn power_button(socket: &Path) -> Result<(), VmmApiError> {
    request(Method::PUT, "vm.power-button", None, PATIENCE, socket).await.map(|_| ())
}

/// Ends the guest and the hypervisor.
pub async fn shut_down(socket: &Path) -> Result<(), VmmApiError> {
    request(Method::PUT, "vmm.shutdown", None, PATIENCE, socket).await.map(|_| ())
}

async fn json<T: serde::de::DeserializeOwned>(method: Method, name: &str, socket: &Path) -> Result<T, VmmApiError> {
    let body = request(method, name, None, PATIENCE, socket).await?;
    serde_json::from_slice(&body)
        .map_err(|error| VmmApiError::NotUnderstood { request: name.to_owned(), why: error.to_string() })
}

async fn request(
    method: Method,
    name: &str,
    body: Option<Vec<u8>>,
    patience: Duration,
    socket: &Path,
) -> Result<Vec<u8>, VmmApiError> {
    let no_answer = |error: reqwest::Error| VmmApiError::NoAnswer(error_chain(&error.without_url()));
    let options = ClientOptions {
        total_timeout: Some(patience),
        trust: Trust::NoServer,
        use_proxy: false,
        http1_only: true,
        unix_socket: Some(socket.to_owned()),
        ..ClientOptions::new(CONNECT)
    };
    let mut request = options.build().map_err(no_answer)?.request(method, format!("http://localhost/api/v1/{name}"));
    if let Some(body) = body {
        request = request.header("content-type", "application/json").body(body);
    }
    let response = request.send().await.map_err(no_answer)?;
    let status = response.status();
    let Some(body) = bounded_body(response, LARGEST_ANSWER).await.map_err(no_answer)? else {
        let why = format!("it is larger than {LARGEST_ANSWER} bytes");
        return Err(VmmApiError::NotUnderstood { request: name.to_owned(), why });
    };
    match status {
        StatusCode::OK | StatusCode::NO_CONTENT => Ok(body),
        status => {
            Err(VmmApiError::Refused { request: name.to_owned(), status: status.as_u16(), messages: messages(&body) })
        }
    }
}

/// The texts of an error's body, bounded.
fn messages(body: &[u8]) -> Vec<String> {
    const MOST: usize = 10;
    const LONGEST: usize = 300;
    let listed: Vec<String> = serde_json::from_slice(body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(body).trim().to_owned();
        if text.is_empty() { Vec::new() } else { vec![text] }
    });
    let cut = |text: String| text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
    let shown: Vec<String> = listed.into_iter().take(MOST).map(cut).collect();
    if shown.is_empty() { vec!["it gave no reason".to_owned()] } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_every_version_are_read() {
        let new = br#"["Error from API","The VM info is not available","VM is not created"]"#;
        assert_eq!(messages(new), ["Error from API", "The VM info is not available", "VM is not created"]);
        assert_eq!(messages(b"ApiError(VmInfo(VmNotCreated))\n"), ["ApiError(VmInfo(VmNotCreated))"]);
        assert_eq!(messages(b""), ["it gave no reason"]);
        let flood = serde_json::to_vec(&vec!["x\ny".repeat(1000); 100]).unwrap();
        let shown = messages(&flood);
        assert!(shown.len() == 10 && shown.iter().all(|text| text.len() == 300 && !text.contains('\n')));
    }
}
