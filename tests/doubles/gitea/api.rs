//! One request, from its arrival to its answer: what is the same for every path.

use std::{sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::Response,
};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{
    Double, access, connect, control,
    faults::{self, Then},
    jobs,
    reply::Reply,
    routes, webhooks,
    world::World,
};

pub struct Request {
    pub method: Method,
    /// Below the path of the server, from `api` on.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Request {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|v| v.to_str().ok())
    }
}

pub async fn handle(State(double): State<Arc<Double>>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 32 << 20).await else {
        return Reply::empty(413).into_response();
    };
    let full = parts.uri.path();
    let segments = |text: &str| text.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    if let Some(rest) = full.strip_prefix("/_double/") {
        return control::handle(&double, &segments(rest), &body).into_response();
    }
    let below = full.strip_prefix(double.path.as_str()).filter(|rest| rest.starts_with('/'));
    let Some(path) = below.map(segments).filter(|path| path.first().is_some_and(|first| first == "api")) else {
        return elsewhere();
    };
    let query = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    let request = Request { method: parts.method, path, query, headers: parts.headers, body };
    let then = faults::meet(&mut double.world.lock().expect("no code panics with it").faults, &request);
    if let Some(Then::Delay(milliseconds)) = then {
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
    }
    let reply = {
        let mut world = double.world.lock().expect("no code panics with it");
        jobs::sweep(&mut world);
        let reply = match &then {
            Some(Then::Drop) => Reply::empty(500),
            Some(Then::Answer { status, headers, body }) => injected(*status, headers, body),
            _ => answer(&mut world, &request),
        };
        note(&mut world, &request, &then, &reply);
        webhooks::hand_over(&mut world, &double.outbox);
        reply
    };
    match then {
        // No message, because it is meant: the connection's task ends, and with it the connection.
        Some(Then::Drop | Then::LoseReply) => std::panic::resume_unwind(Box::new("the reply is lost")),
        Some(Then::Truncate) => truncated(reply),
        Some(Then::Say(text)) => {
            let mut response = reply.into_response();
            *response.body_mut() = Body::from(text);
            response
        }
        Some(Then::DelayReply(milliseconds)) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            reply.into_response()
        }
        _ => reply.into_response(),
    }
}

/// A page for people: this is what a wrong base URL meets.
fn elsewhere() -> Response {
    let mut response = Response::new(Body::from("<!DOCTYPE html>\n<title>Page Not Found</title>\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    response
}

fn answer(world: &mut World, request: &Request) -> Reply {
    let path: Vec<&str> = request.path[1..].iter().map(String::as_str).collect();
    match path.as_slice() {
        ["v1", rest @ ..] => routes::route(world, request, rest),
        ["actions", service, procedure] => connect::call(world, request, service, procedure),
        _ => Reply::not_found(world),
    }
}

fn injected(status: u16, headers: &std::collections::BTreeMap<String, String>, body: &Value) -> Reply {
    let mut reply = if body.is_null() { Reply::empty(status) } else { Reply::new(status, body.clone()) };
    for (name, value) in headers {
        let name: axum::http::HeaderName = name.parse().expect("a header's name");
        reply.headers.insert(name, value.parse().expect("a header's value"));
    }
    reply
}

/// Half of it, announced as the whole.
fn truncated(reply: Reply) -> Response {
    let bytes = reply.text();
    let (length, half) = (bytes.len(), Bytes::from(bytes[..bytes.len() / 2].to_vec()));
    let cut = async {
        // Until then what was written is held back, and the client would not even see the status.
        tokio::task::yield_now().await;
        Err(std::io::Error::other("cut"))
    };
    let pieces = futures_util::stream::iter([Ok(half)]).chain(futures_util::stream::once(cut));
    let mut response = reply.into_response();
    *response.body_mut() = Body::from_stream(pieces);
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    response
}

fn note(world: &mut World, request: &Request, then: &Option<Then>, reply: &Reply) {
    let status = if matches!(then, Some(Then::Drop)) { Value::Null } else { json!(reply.status.as_u16()) };
    // Whose token it was and not the token: tests print this.
    let user = access::token(request).and_then(|token| world.tokens.get(token)).map(|token| token.user.clone());
    let path = format!("/{}", request.path.join("/"));
    let written = json!({
        "method": request.method.as_str(), "path": path, "query": request.query, "status": status, "user": user,
        "user_agent": request.header("user-agent"), "accept": request.header("accept"),
        "runner": request.header("x-runner-uuid"),
    });
    let numbers = |segment: &String| if segment.parse::<u64>().is_ok() { "*".to_owned() } else { segment.clone() };
    let kind = request.path.iter().map(numbers).collect::<Vec<_>>().join("/");
    world.remember(format!("{} /{kind}", request.method), written);
}
