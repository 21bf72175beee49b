//! The only place where an error becomes a response: `application/problem+json` (RFC 9457).
//!
//! A handler returns a [`Problem`], which knows the error but not the request. The middleware adds the request id and
//! the path, and calls [`render`], which logs the private cause once and does not send it.

use std::sync::Arc;

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{
    domain::{Code, Error, error::FieldError},
    platform::error_chain,
};

pub const CONTENT_TYPE: &str = "application/problem+json";

/// An error on its way to the caller.
#[derive(Debug)]
pub struct Problem(Box<Error>);

impl<E: Into<Error>> From<E> for Problem {
    fn from(error: E) -> Self {
        Self(Box::new(error.into()))
    }
}

impl Problem {
    pub fn new(code: Code, detail: impl Into<String>) -> Self {
        Error::new(code, detail).into()
    }

    pub fn invalid(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Error::new(Code::RequestInvalid, "the request is not acceptable").field(pointer, detail).into()
    }
}

/// Attached to a response until the middleware renders it.
#[derive(Clone)]
pub struct Unrendered(Arc<Error>);

impl From<Problem> for Unrendered {
    fn from(problem: Problem) -> Self {
        Self(Arc::from(problem.0))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status(self.0.code);
        response.extensions_mut().insert(Unrendered::from(self));
        response
    }
}

/// Why a request failed (RFC 9457).
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Body9457<'a> {
    /// `/problems/<code>`: a page about this code.
    #[serde(rename = "type")]
    #[schema(format = "uri-reference", example = "/problems/vm.not_found")]
    kind: String,
    /// The same for every occurrence of the code.
    #[schema(example = "There is no such vm")]
    title: &'a str,
    #[schema(example = 404)]
    status: u16,
    /// What happened in this case.
    detail: &'a str,
    /// The path of the request.
    #[schema(format = "uri-reference")]
    instance: &'a str,
    /// Stable: programs branch on this one.
    code: Code,
    /// Also in the `x-request-id` header and in the service's log.
    request_id: &'a str,
    /// Whether the same request may succeed later without being changed.
    retryable: bool,
    /// The fields that were not accepted, for invalid input.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schema(value_type = Vec<FieldError>, required = false)]
    errors: &'a [FieldError],
}

fn status(code: Code) -> StatusCode {
    StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The response that the caller sees. `headers` are those that the router had set (`Allow`).
pub fn render(problem: &Unrendered, request_id: &str, path: &str, headers: &HeaderMap) -> Response {
    let error = &*problem.0;
    let code = error.code;
    log(error, request_id);
    let body = Body9457 {
        kind: format!("/problems/{code}"),
        title: code.title(),
        status: code.status(),
        detail: &error.detail,
        instance: path,
        code,
        request_id,
        retryable: code.retryable(),
        errors: &error.fields,
    };
    let bytes = serde_json::to_vec(&body).expect("strings and numbers serialise");
    let mut response = Response::new(Body::from(bytes));
    *response.status_mut() = status(code);
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    if let Some(allow) = headers.get(header::ALLOW) {
        out.insert(header::ALLOW, allow.clone());
    }
    if code == Code::AuthRequired {
        out.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"mayfly\""));
    }
    if let Some(seconds) = error.retry_after.or((code.status() == 503).then_some(2)) {
        out.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Logs errors of the service. An error of the caller is not logged: the answer describes it. Neither is a refusal because of
/// too many requests, because its sender decides how many of these there are; metrics count them.
fn log(error: &Error, request_id: &str) {
    let cause = error.cause.as_deref().map(|cause| error_chain(cause)).unwrap_or_default();
    if error.code == Code::Internal || (error.cause.is_some() && error.code.status() >= 500) {
        tracing::error!(request.id = %request_id, problem.code = %error.code, cause, "{}", error.detail);
    } else if error.code == Code::Overloaded {
        tracing::debug!(request.id = %request_id, problem.code = %error.code, "{}", error.detail);
    } else if error.code.status() >= 500 {
        tracing::warn!(request.id = %request_id, problem.code = %error.code, "{}", error.detail);
    }
}
