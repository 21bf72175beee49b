//! Health checks, and metrics for Prometheus.

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
    host::age_seconds,
    problem::Problem,
    time::Time,
};
use crate::domain::Code;

#[derive(Serialize, ToSchema)]
pub struct Health {
    #[schema(example = "ok")]
    status: &'static str,
}

const OK: Answer<Health> = Answer(Health { status: "ok" });

#[derive(Serialize, ToSchema)]
pub struct Readiness {
    #[schema(example = "ok")]
    status: &'static str,
    /// When the instances on the host were last listed; of several drivers, the oldest list.
    host_observed_at: Time,
    /// Age of that, in seconds.
    host_observed_age_seconds: u64,
}

/// Whether the service runs
///
/// Checks nothing else: a restart does not help a service that cannot reach its database.
#[utoipa::path(
    get, path = "/healthz", tag = "health",
    responses((status = 200, description = "The service runs", body = Health, example = json!({"status": "ok"}))),
    security(()),
)]
pub async fn get_health() -> Answer<Health> {
    OK
}

/// Whether new vms can be accepted
///
/// Writes to the database as a test, at most once a second, and checks that its files have not been replaced.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses((status = 200, description = "The database accepts writes and the host was inspected", body = Readiness,
        example = json!({"status": "ok", "host_observed_at": "2026-11-20T09:00:00.000Z", "host_observed_age_seconds": 12}))),
    security(()),
)]
pub async fn get_readiness(FromState(http): FromState<Arc<Http>>) -> Result<Answer<Readiness>, Problem> {
    if http.shutdown.is_cancelled() {
        return Err(Problem::new(Code::ShuttingDown, "the service is finishing its requests"));
    }
    http.services.hosts.ready().await?;
    let at = http.services.hosts.observed_at();
    let age = age_seconds(at, http.services.hosts.now());
    Ok(Answer(Readiness { status: "ok", host_observed_at: at.into(), host_observed_age_seconds: age }))
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
    http.services.metrics.measure().await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], (http.metrics)()))
}
