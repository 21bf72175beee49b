//! One request, from its arrival to its answer: what is the same for every path.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, header},
    response::Response,
};
use serde_json::{Value, json};

use crate::{
    Double, agents, control,
    faults::{self, Then},
    reply::Reply,
    stacks,
    world::World,
};

pub struct Request {
    pub method: Method,
    /// Below `/v3`.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    /// Null if there is none, or if it is no JSON.
    pub body: Value,
    /// As it came.
    pub raw: Bytes,
}

impl Request {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// `Authorization: Token …`
    pub fn token(&self) -> Option<&str> {
        self.headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Token ")
    }
}

pub async fn handle(State(double): State<Arc<Double>>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 32 << 20).await else {
        return Reply::empty(413).into_response();
    };
    let full = parts.uri.path().to_owned();
    if let Some(rest) = full.strip_prefix("/_double/") {
        return control::handle(&double, rest, &body).into_response();
    }
    let Some(below) = full.strip_prefix("/v3/") else { return Reply::refuse(404, "Not Found").into_response() };
    // A part of a job's log.
    let log = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "text/plain");
    let Ok(parsed) = (if log { Ok(Value::Null) } else { parse(&parts.headers, &body) }) else {
        return Reply::refuse(400, "There was a problem parsing the JSON you submitted").into_response();
    };
    let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let path = below.split('/').map(str::to_owned).collect();
    let request = Request { method: parts.method, path, query, headers: parts.headers, body: parsed, raw: body };
    let then = faults::meet(&mut double.world.lock().expect("no code panics with it").faults, below);
    let reply = {
        let mut world = double.world.lock().expect("no code panics with it");
        world.sweep();
        let reply = match &then {
            Some(Then::Drop | Then::Stall) => Reply::empty(500),
            Some(Then::Answer { status, headers, body }) => {
                let reply = if body.is_null() { Reply::empty(*status) } else { Reply::new(*status, body.clone()) };
                headers.iter().fold(reply, |reply, (name, value)| reply.with(name, value))
            }
            _ => answer(&mut world, &request),
        };
        let status =
            if matches!(then, Some(Then::Drop | Then::Stall)) { Value::Null } else { json!(reply.status.as_u16()) };
        world.remember(json!({
            "method": request.method.as_str(), "path": format!("/{below}"), "query": request.query, "status": status,
            "body": request.body,
        }));
        reply
    };
    match then {
        // No message, because it is meant: the connection's task ends, and with it the connection.
        Some(Then::Drop | Then::LoseReply) => std::panic::resume_unwind(Box::new("the reply is lost")),
        Some(Then::Hang | Then::Stall) => std::future::pending().await,
        Some(Then::Say(text)) => {
            let mut response = reply.into_response();
            *response.body_mut() = Body::from(text);
            response
        }
        _ => reply.into_response(),
    }
}

fn parse(headers: &HeaderMap, body: &Bytes) -> Result<Value, ()> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    let json = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    if !json.is_some_and(|kind| kind.starts_with("application/json")) {
        return Err(());
    }
    serde_json::from_slice(body).map_err(drop)
}

fn answer(world: &mut World, request: &Request) -> Reply {
    let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
    match path.as_slice() {
        ["stacks", rest @ ..] => stacks::route(world, request, rest),
        rest => agents::route(world, request, rest),
    }
}
