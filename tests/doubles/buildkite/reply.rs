//! Answers as Buildkite writes them.

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
}

impl Reply {
    pub fn new(status: u16, body: Value) -> Reply {
        let status = StatusCode::from_u16(status).expect("a status that is written here, or that a test ordered");
        Reply { status, body: Some(body), headers: HeaderMap::new() }
    }

    pub fn ok(body: Value) -> Reply {
        Reply::new(200, body)
    }

    pub fn empty(status: u16) -> Reply {
        Reply { body: None, ..Reply::new(status, Value::Null) }
    }

    pub fn refuse(status: u16, message: impl Into<String>) -> Reply {
        Reply::new(status, json!({"message": message.into()}))
    }

    pub fn with(mut self, name: &str, value: &str) -> Reply {
        let name: HeaderName = name.parse().expect("a header's name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("plain text"));
        self
    }

    pub fn text(&self) -> Vec<u8> {
        self.body.as_ref().map(|b| b.to_string().into_bytes()).unwrap_or_default()
    }

    pub fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.text()));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        if self.body.is_some() {
            let json = HeaderValue::from_static("application/json; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        response
    }
}
