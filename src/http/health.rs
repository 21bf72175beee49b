//! For probes and for Prometheus.

use std::sync::Arc;

use axum::{
    Json as Answer,
    extract::State as FromState,
    http::{HeaderName, header},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Allowed, Read},
    problem::Problem,
};
use crate::domain::Code;

#[derive(Serialize, ToSchema)]
pub struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Answer<Health> = Answer(Health { status: "ok" });

/// Whether the service runs
///
/// Looks at nothing else: a service that is up and cannot reach its database is not helped by a restart.
#[utoipa::path(
    get, path = "/healthz", tag = "health",
    responses((status = 200, description = "It runs", body = Health, example = json!({"status": "ok"}))),
    security(()),
)]
pub async fn get_health() -> Answer<Health> {
    OK
}

/// Whether new vms can be served
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses((status = 200, description = "The database answers and the host was looked at", body = Health, example = json!({"status": "ok"}))),
    security(()),
)]
pub async fn get_readiness(FromState(http): FromState<Arc<Http>>) -> Result<Answer<Health>, Problem> {
    if http.shutdown.is_cancelled() {
        return Err(Problem::new(Code::ShuttingDown, "the service is finishing its requests"));
    }
    http.service.ready().await?;
    Ok(OK)
}

/// Metrics
///
/// In Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, description = "Metrics", body = String, content_type = "text/plain", example = json!("# TYPE mayfly_vms gauge\nmayfly_vms{state=\"running\"} 2\n"))),
    security(("token" = ["read"])),
)]
pub async fn get_metrics(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
) -> Result<([(HeaderName, &'static str); 1], String), Problem> {
    http.service.measure().await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (http.metrics)()))
}
