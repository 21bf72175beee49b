//! Answers as Gitea writes them.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::Response,
};
use serde_json::{Value, json};

use crate::world::World;

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

    pub fn refuse(world: &World, status: u16, message: &str) -> Reply {
        Reply::new(status, json!({"message": message, "url": format!("{}/api/swagger", world.root)}))
    }

    pub fn not_found(world: &World) -> Reply {
        Reply::missing(world, "not found")
    }

    pub fn missing(world: &World, message: &str) -> Reply {
        let url = format!("{}/api/swagger", world.root);
        Reply::new(404, json!({"errors": null, "message": message, "url": url}))
    }

    /// What a call of the Connect protocol ends with instead of its answer.
    pub fn connect(code: &str, message: &str) -> Reply {
        let status = match code {
            "invalid_argument" => 400,
            "unimplemented" => 501,
            _ => 500,
        };
        Reply::new(status, json!({"code": code, "message": message}))
    }

    /// The server writes its errors with gRPC's library, which Connect's does not know: whatever the code is, the client is told
    /// `unknown`, and has the code in the text alone.
    pub fn grpc(code: &str, message: &str) -> Reply {
        Reply::connect("unknown", &format!("rpc error: code = {code} desc = {message}"))
    }

    /// An order of a test that makes no sense.
    pub fn wrong(message: impl Into<String>) -> Reply {
        Reply::new(400, json!({"message": message.into()}))
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
        if self.body.is_some() && !response.headers().contains_key(header::CONTENT_TYPE) {
            let json = HeaderValue::from_static("application/json;charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, json);
        }
        response
    }
}
