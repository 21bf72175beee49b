//! Receives webhooks for the tests of jobs.

use axum::{
    Router,
    body::Bytes,
    extract::State as FromState,
    http::{HeaderMap, StatusCode},
    routing::post,
};
use mayfly::{domain::SourceName, service::webhooks::Webhook};

use super::{Served, Serving};

/// A webhook's receiver that lives as long as the test, whoever serves.
pub async fn receiver(source: &SourceName, serving: Serving) -> String {
    type To = (SourceName, Serving);
    async fn take(FromState((source, serving)): FromState<To>, headers: HeaderMap, body: Bytes) -> StatusCode {
        let Some(Served { services, .. }) = serving.borrow().clone() else { return StatusCode::BAD_GATEWAY };
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let signature = match services.webhooks.check_signature_header(source.as_str(), text("x-hub-signature-256")) {
            Ok(signature) => signature,
            Err(error) => return StatusCode::from_u16(error.code.status()).unwrap(),
        };
        let webhook = Webhook {
            event: text("x-github-event"),
            guid: text("x-github-delivery"),
            signature,
            form: false,
            body: &body,
        };
        match services.webhooks.receive(webhook).await {
            Ok(()) => StatusCode::ACCEPTED,
            Err(error) => StatusCode::from_u16(error.code.status()).unwrap(),
        }
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let path = format!("/webhooks/{source}");
    let url = format!("http://{}{path}", listener.local_addr().unwrap());
    let router = Router::new().route(&path, post(take)).with_state((source.clone(), serving));
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}
