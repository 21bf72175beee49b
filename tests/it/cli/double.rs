//! A stand-in for the service: answers from a script and remembers what it was asked.

use std::{
    collections::HashMap,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Request, State},
    http::{HeaderMap, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

pub const ID: &str = "019aa6d2-0000-7000-8000-00000000000a";

#[derive(Clone, Debug)]
pub struct TemplateOverrides {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Value,
}

#[derive(Default)]
struct Inner {
    asked: Vec<TemplateOverrides>,
    /// By method and path.
    answers: HashMap<String, (StatusCode, &'static str, Vec<u8>)>,
    /// The states of one vm's record, by generation from 1 on.
    life: Vec<Value>,
    /// The index of the latest record that was given.
    reached: usize,
    /// How often the vm is refused before it is answered.
    outage: u32,
}

#[derive(Clone, Default)]
pub struct Double {
    inner: Arc<Mutex<Inner>>,
    pub url: String,
}

impl Double {
    pub async fn start() -> Double {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let double = Double { url, ..Double::default() };
        let app = Router::new().fallback(answer).with_state(double.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        double
    }

    /// Also on this socket, which only its owner may use.
    pub fn listen(&self, socket: &Path) {
        let listener = tokio::net::UnixListener::bind(socket).expect("a socket");
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).expect("its mode");
        let app = Router::new().fallback(answer).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no test panics while it holds this")
    }

    pub fn on(&self, what: &str, status: u16, body: Value) -> &Self {
        let status = StatusCode::from_u16(status).expect("a status");
        let kind = if status.is_success() { "application/json" } else { "application/problem+json" };
        self.inner().answers.insert(what.to_owned(), (status, kind, body.to_string().into_bytes()));
        self
    }

    pub fn on_bytes(&self, what: &str, status: u16, kind: &'static str, body: &[u8]) -> &Self {
        let status = StatusCode::from_u16(status).expect("a status");
        self.inner().answers.insert(what.to_owned(), (status, kind, body.to_vec()));
        self
    }

    pub fn problem(&self, what: &str, status: u16, code: &str, detail: &str) -> &Self {
        let title = "The title";
        self.on(
            what,
            status,
            json!({ "type": format!("/problems/{code}"), "title": title, "status": status, "detail": detail, "code": code,
                    "request_id": "req-1", "retryable": false, "errors": [] }),
        )
    }

    /// The vm `ID` lives through these states: each is a record that a long poll gives in turn.
    pub fn lives(&self, records: Vec<Value>) -> &Self {
        self.inner().life = records;
        self
    }

    pub fn outage(&self, answers: u32) -> &Self {
        self.inner().outage = answers;
        self
    }

    pub fn asked(&self) -> Vec<TemplateOverrides> {
        self.inner().asked.clone()
    }

    pub fn last(&self) -> TemplateOverrides {
        self.asked().pop().expect("it was asked something")
    }
}

async fn answer(State(double): State<Double>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body: Bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let what = format!("{} {path}", parts.method);
    let (known, life) = {
        let mut inner = double.inner();
        inner.asked.push(TemplateOverrides {
            method: parts.method,
            path,
            query: query.clone(),
            headers: parts.headers,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        });
        let with_query = format!("{what}?{query}");
        let known = inner.answers.get(&with_query).or_else(|| inner.answers.get(&what)).cloned();
        (known, inner.life.clone())
    };
    if what == format!("GET /vms/{ID}") && !life.is_empty() {
        return live(&double, &life, &query).await;
    }
    match known {
        Some((status, kind, body)) => (status, [(header::CONTENT_TYPE, kind)], body).into_response(),
        None => (StatusCode::NOT_FOUND, "nobody taught the double this").into_response(),
    }
}

async fn live(double: &Double, life: &[Value], query: &str) -> Response {
    let ask =
        |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=')?.parse::<usize>().ok());
    let seen = ask("wait_generation").unwrap_or(0);
    if seen > 0 {
        let mut inner = double.inner();
        if inner.outage > 0 {
            inner.outage -= 1;
            return StatusCode::SERVICE_UNAVAILABLE.into_response();
        }
    }
    // Generations begin with 1: the next record is the one at the index of the last generation seen.
    let index = {
        let mut inner = double.inner();
        inner.reached = inner.reached.max(seen.min(life.len() - 1));
        if seen > 0 { seen } else { inner.reached }
    };
    match life.get(index) {
        Some(next) => axum::Json(next.clone()).into_response(),
        None => {
            tokio::time::sleep(Duration::from_secs(ask("timeout_seconds").unwrap_or(0) as u64)).await;
            axum::Json(life.last().cloned()).into_response()
        }
    }
}

/// A vm in the API's shape.
pub fn vm(generation: usize, states: &[(&str, &str)], more: Value) -> Value {
    let timeline: Vec<Value> = states.iter().map(|(state, at)| json!({ "state": state, "at": at })).collect();
    let state = states.last().expect("a state").0;
    let mut vm = json!({
        "id": ID, "name": "build-7", "state": state, "generation": generation, "template": "micro",
        "template_digest": "sha256:0123456789abcdef", "driver": "qemu", "os": "linux", "cpus": 2, "memory_mib": 512,
        "network": "isolated",
        "labels": {}, "runner": { "kind": "command", "status": "none" }, "queue": null, "deadline": null, "budgets": {},
        "attempt": 1, "ssh": null, "announced_by": null, "announced_at": null, "end_signal": null, "outcome": null,
        "job": null, "last_fault": null, "timeline": timeline, "created_at": states[0].1, "updated_at": states[0].1,
        "deleted_at": null,
    });
    for (key, value) in more.as_object().expect("an object") {
        vm[key] = value.clone();
    }
    vm
}

/// A life from queue to end, with this end.
pub fn life(end: Value) -> Vec<Value> {
    let all = [
        ("queued", "2026-11-20T10:00:00Z"),
        ("cloning", "2026-11-20T10:00:02.5Z"),
        ("booting", "2026-11-20T10:00:02.6Z"),
        ("running", "2026-11-20T10:00:06.5Z"),
        ("draining", "2026-11-20T10:02:36.5Z"),
        ("deleted", "2026-11-20T10:02:38Z"),
    ];
    let mut records = vec![
        vm(1, &all[..1], json!({ "queue": { "reason": "slot", "position": 2, "deadline": "2026-11-20T11:00:00Z" } })),
        vm(2, &all[..1], json!({ "queue": { "reason": "slot", "position": 1, "deadline": "2026-11-20T11:00:00Z" } })),
    ];
    for upto in 2..all.len() {
        records.push(vm(upto + 1, &all[..upto], json!({})));
    }
    records.push(vm(all.len() + 1, &all, end));
    records
}
