//! One request, from its arrival to its answer: what is the same for every path.

use std::sync::Arc;

use aws_lc_rs::digest;
use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode},
    response::Response,
};
use futures_util::StreamExt;
use serde_json::{Value, json};

use crate::{
    Double, auth, control,
    faults::{self, Then},
    limits, live,
    reply::Reply,
    routes, work,
    world::World,
};

pub struct ApiRequest {
    pub method: Method,
    /// Without the prefix of an Enterprise Server.
    pub path: Vec<String>,
    pub query: Vec<(String, String)>,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub enterprise: bool,
    /// As the client wrote it, without the query.
    pub url: String,
}

impl ApiRequest {
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    pub fn json(&self) -> Option<Value> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The path under another name of its place.
    fn moved(&self, from: usize, to: &str) -> String {
        let base = &self.url[..self.url.find("/repos/").unwrap_or(self.url.len())];
        let rest: Vec<&str> = self.path[from..].iter().map(String::as_str).collect();
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(&self.query).finish();
        let query = if query.is_empty() { query } else { format!("?{query}") };
        format!("{base}/{to}/{}{query}", rest.join("/"))
    }
}

pub async fn handle(State(double): State<Arc<Double>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, 32 << 20).await else {
        return Reply::refuse(413, "Payload too large").into_response();
    };
    let full = parts.uri.path().trim_matches('/').to_owned();
    let segments = |text: &str| text.split('/').filter(|s| !s.is_empty()).map(str::to_owned).collect::<Vec<_>>();
    let query: Vec<(String, String)> =
        form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    if let Some(rest) = full.strip_prefix("_double/") {
        return control::handle(&double, &segments(rest), &body).await.into_response();
    }
    if let Some(what) = full.strip_prefix("_runner/") {
        return live::handle(&double, what, &parts.headers, query, &body).await;
    }
    let (enterprise, path) = match full.strip_prefix("api/v3/") {
        Some(rest) => (true, rest),
        None => (false, full.as_str()),
    };
    let asked = ApiRequest {
        method: parts.method,
        path: segments(path),
        query,
        url: format!("{}/{full}", double.origin),
        headers: parts.headers,
        body,
        enterprise,
    };
    let (then, reply, sends) = {
        let mut world = double.world.lock().expect("no code panics with it");
        work::sweep(&mut world);
        let then = faults::meet(&mut world.faults, &asked);
        let reply = match &then {
            Some(Then::Drop) => Reply::empty(500),
            Some(Then::Answer { status, headers, body }) => injected(*status, headers, body),
            _ => answer(&mut world, &double.origin, &asked),
        };
        note(&mut world, &asked, &then, &reply);
        (then, reply, crate::webhooks::due(&mut world))
    };
    crate::webhooks::send(&double, sends);
    match then {
        // No message, because it is meant: the connection's task ends, and with it the connection.
        Some(Then::Drop | Then::LoseReply) => std::panic::resume_unwind(Box::new("the reply is lost")),
        Some(Then::Truncate) => truncated(reply),
        Some(Then::Say(text)) => {
            let mut response = reply.into_response();
            *response.body_mut() = Body::from(text);
            response
        }
        _ => reply.into_response(),
    }
}

fn injected(status: u16, headers: &std::collections::BTreeMap<String, String>, body: &Value) -> Reply {
    let mut reply = Reply::new(status, body.clone());
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
    let pieces =
        futures_util::stream::iter([Ok(half)]).chain(futures_util::stream::iter([Err(std::io::Error::other("cut"))]));
    let mut response = reply.into_response();
    *response.body_mut() = Body::from_stream(pieces);
    response.headers_mut().insert("content-length", HeaderValue::from(length));
    response
}

fn note(world: &mut World, asked: &ApiRequest, then: &Option<Then>, reply: &Reply) {
    let header = |name: &str| asked.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let status = if matches!(then, Some(Then::Drop)) { Value::Null } else { json!(reply.status.as_u16()) };
    // Whose token it was and not the token: tests print this.
    let kind =
        auth::text(asked).map(|t| if t.starts_with("ey") { "jwt".to_owned() } else { t.chars().take(4).collect() });
    world.requests.push(json!({
        "method": asked.method.as_str(), "path": format!("/{}", asked.path.join("/")), "query": asked.query,
        "enterprise": asked.enterprise, "status": status, "credential": kind, "user_agent": header("user-agent"),
        "accept": header("accept"), "version": header("x-github-api-version"), "if_none_match": header("if-none-match"),
    }));
}

fn answer(world: &mut World, origin: &str, asked: &ApiRequest) -> Reply {
    let mut reply = judged(world, origin, asked);
    if asked.enterprise {
        reply = reply.with("x-github-enterprise-version", "3.17.2");
    }
    let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&world.now());
    reply.with("date", &date.expect("a year of our time")).with("x-github-media-type", "github.v3; format=json")
}

fn judged(world: &mut World, origin: &str, asked: &ApiRequest) -> Reply {
    if asked.headers.get("user-agent").is_none_or(|v| v.is_empty()) {
        return Reply::refuse(
            403,
            "Request forbidden by administrative rules. Please make sure your request has a User-Agent header",
        );
    }
    let version = asked.headers.get("x-github-api-version").map_or("2022-11-28", |v| v.to_str().unwrap_or(""));
    if !["2022-11-28", "2026-03-10"].contains(&version) {
        return Reply::refuse(400, format!("\"{version}\" is not a valid value for X-GitHub-Api-Version"));
    }
    let version = version.to_owned();
    let who = match auth::who(world, asked) {
        Ok(who) => who,
        Err(refusal) => return refusal,
    };
    let whose = who.bucket(auth::text(asked).unwrap_or_default());
    if asked.path == ["rate_limit"] {
        let mut reply = limits::show(world, &whose);
        limits::count(world, &whose, limits::CORE, &mut reply);
        return described(reply, &who, &version, world, asked);
    }
    let resource = limits::resource(world, &asked.path);
    let mut reply = if limits::spent(world, &whose, resource) {
        Reply { free: true, ..Reply::refuse(403, format!("API rate limit exceeded for {whose}.")) }
    } else if let Some(moved) = renamed(world, asked) {
        moved
    } else {
        routes::route(world, origin, asked, &who)
    };
    if reply.status == StatusCode::OK && asked.method == Method::GET {
        reply = conditional(reply, asked, &whose);
    }
    limits::count(world, &whose, resource, &mut reply);
    described(reply, &who, &version, world, asked)
}

/// What answers say of who asked.
fn described(reply: Reply, who: &auth::Who, version: &str, world: &World, asked: &ApiRequest) -> Reply {
    let reply = reply.with("x-github-api-version-selected", version);
    let auth::Who::Token(holder) = who else { return reply };
    let reply = match holder {
        auth::Holder::Classic { scopes, .. } => reply.with("x-oauth-scopes", scopes),
        _ => reply,
    };
    let token = auth::text(asked).and_then(|text| world.tokens.get(text));
    match (holder, token.and_then(|t| t.expires_at)) {
        (auth::Holder::Classic { .. } | auth::Holder::FineGrained { .. }, Some(at)) => {
            reply.with("github-authentication-token-expiration", &at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
        }
        _ => reply,
    }
}

/// A place that has another name now is redirected to: looks permanently, changes such that they stay changes.
fn renamed(world: &World, asked: &ApiRequest) -> Option<Reply> {
    let place = asked.path.get(..3).filter(|p| p[0] == "repos")?.join("/");
    let to = world.renamed.get(&place)?;
    let status = if asked.method == Method::GET { 301 } else { 307 };
    let location = asked.moved(3, to);
    let body =
        json!({"message": "Moved Permanently", "url": location, "documentation_url": "https://docs.github.com/rest"});
    Some(Reply::new(status, body).with("location", &location))
}

/// The tag depends on who asks.
fn conditional(reply: Reply, asked: &ApiRequest, whose: &str) -> Reply {
    let mut of = whose.as_bytes().to_vec();
    of.extend(reply.text());
    let sum = digest::digest(&digest::SHA256, &of);
    let hex: String = sum.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let tag = format!("W/\"{hex}\"");
    let known = asked.headers.get("if-none-match").and_then(|v| v.to_str().ok()) == Some(&tag);
    let reply = if known { Reply { headers: reply.headers, ..Reply::empty(304) } } else { reply };
    reply.with("etag", &tag)
}
