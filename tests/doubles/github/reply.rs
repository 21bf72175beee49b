//! Answers as GitHub writes them.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

pub struct Reply {
    pub status: StatusCode,
    pub body: Option<Value>,
    pub headers: HeaderMap,
    /// Costs nothing.
    pub free: bool,
}

impl Reply {
    pub fn new(status: u16, body: Value) -> Reply {
        let status = StatusCode::from_u16(status).expect("a status of ours");
        Reply { status, body: Some(body), headers: HeaderMap::new(), free: false }
    }

    pub fn ok(body: Value) -> Reply {
        Reply::new(200, body)
    }

    pub fn empty(status: u16) -> Reply {
        Reply { body: None, ..Reply::new(status, Value::Null) }
    }

    pub fn refuse(status: u16, message: impl Into<String>) -> Reply {
        let message: String = message.into();
        let docs = "https://docs.github.com/rest";
        Reply::new(status, json!({"message": message, "documentation_url": docs, "status": status.to_string()}))
    }

    pub fn not_found() -> Reply {
        Reply::refuse(404, "Not Found")
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Reply {
        self.headers.insert(HeaderName::from_static(name), HeaderValue::from_str(value).expect("plain text"));
        self
    }

    pub fn text(&self) -> Vec<u8> {
        self.body.as_ref().map(|b| b.to_string().into_bytes()).unwrap_or_default()
    }

    pub fn into_response(self) -> Response {
        let bytes = self.text();
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if self.body.is_some() {
            let json = HeaderValue::from_static("application/json; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        response
    }
}
