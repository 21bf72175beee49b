//! A proxy before the service that holds creations back, or refuses everything for a while.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use tokio::sync::Semaphore;

#[derive(Clone)]
pub struct Gate {
    service: String,
    pub url: String,
    /// Creations that have arrived.
    pub arrived: Arc<Semaphore>,
    /// Creations that may go on.
    pub release: Arc<Semaphore>,
    /// So many requests are answered with 503.
    pub outage: Arc<AtomicU32>,
    /// Lists that were answered.
    pub lists: Arc<AtomicU32>,
}

impl Gate {
    pub async fn before(service: &str) -> Gate {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let gate = Gate {
            service: service.to_owned(),
            url,
            arrived: Arc::new(Semaphore::new(0)),
            release: Arc::new(Semaphore::new(0)),
            outage: Arc::default(),
            lists: Arc::default(),
        };
        let app = Router::new().fallback(pass).with_state(gate.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        gate
    }
}

async fn pass(State(gate): State<Gate>, method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    if gate.outage.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    // In a task: a service that has received a request performs it, whatever becomes of the client.
    let passed = tokio::spawn(async move {
        if method == Method::POST {
            gate.arrived.add_permits(1);
            gate.release.acquire().await.unwrap().forget();
        }
        let is_list = method == Method::GET && uri.path() == "/vms";
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let mut request = client.request(method, format!("{}{uri}", gate.service)).body(body);
        for name in ["authorization", "content-type", "idempotency-key"] {
            if let Some(value) = headers.get(name) {
                request = request.header(name, value);
            }
        }
        let answer = request.send().await.unwrap();
        let kind = answer.headers().get(header::CONTENT_TYPE).cloned();
        let answer = (answer.status(), kind, answer.bytes().await.unwrap());
        if is_list {
            gate.lists.fetch_add(1, Ordering::SeqCst);
        }
        answer
    });
    let (status, kind, body) = passed.await.unwrap();
    let mut response = (status, body).into_response();
    if let Some(kind) = kind {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
}
