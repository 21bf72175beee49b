//! Webhooks of sources of jobs. They need no token: the signature authenticates them.

use std::{sync::Arc, time::Duration};

use axum::{
    Json as Answer,
    body::Body,
    extract::State as FromState,
    http::{HeaderMap, StatusCode, header},
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Http,
    auth::{Allowed, Read},
    bodies::BodyReader,
    extract::{Name, Query, page_size},
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::{
    domain::{Code, SourceName, job::DeliveryResult},
    service::webhooks::{DeliveryRow, LARGEST_BODY, Webhook},
};

/// GitHub itself gives up after ten seconds. Without this limit, a slow sender would block others for longer.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// Receive a webhook
///
/// For a source of jobs, such as GitHub. The signature (`X-Hub-Signature-256`) of the unchanged body is checked against every configured
/// secret; the delivery is stored, and then answered. It is processed later. The same delivery may be sent any
/// number of times.
#[utoipa::path(
    post, path = "/webhooks/{source}", tag = "jobs",
    params(
        ("source" = String, Path, description = "Name of the source of jobs", example = "github"),
        ("X-Hub-Signature-256" = String, Header, description = "`sha256=` and the HMAC of the body in hexadecimal digits"),
        ("X-GitHub-Event" = String, Header, description = "`workflow_job`, `ping`; others are accepted and ignored"),
        ("X-GitHub-Delivery" = String, Header, description = "Id of the delivery; the same when it is sent again"),
    ),
    request_body(content = String, content_type = "application/json", description = "The payload, at most 25 MB"),
    responses((status = 202, description = "Accepted")),
    security(()),
)]
pub async fn take_webhook(
    FromState(http): FromState<Arc<Http>>,
    Name(source): Name,
    headers: HeaderMap,
    reader: BodyReader,
    body: Body,
) -> Result<StatusCode, Problem> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let signature = http.services.webhooks.check_signature_header(&source, text("x-hub-signature-256"))?;
    let late = |_| Problem::new(Code::RequestTimeout, format!("the limit is {} s", READ_WITHIN.as_secs()));
    let read = tokio::time::timeout(READ_WITHIN, reader.up_to(LARGEST_BODY).read(body)).await.map_err(late)?;
    let (body, _share) = read?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let webhook = Webhook {
        event: text("x-github-event"),
        guid: text("x-github-delivery"),
        signature,
        form: kind
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .eq_ignore_ascii_case("application/x-www-form-urlencoded"),
        body: &body,
    };
    http.services.webhooks.receive(webhook).await?;
    Ok(StatusCode::ACCEPTED)
}

/// One delivery of a webhook.
#[derive(Serialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryView {
    /// Its id, as in the App's list of recent deliveries.
    guid: String,
    event: String,
    action: Option<String>,
    result: DeliveryResult,
    /// Why it was ignored or refused.
    detail: Option<String>,
    received_at: Time,
    worked_at: Option<Time>,
}

impl From<DeliveryRow> for DeliveryView {
    fn from(row: DeliveryRow) -> Self {
        Self {
            guid: row.guid,
            event: row.event,
            action: row.action,
            result: row.result,
            detail: row.detail,
            received_at: row.received_at.into(),
            worked_at: row.worked_at.map(Time),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct DeliveryList {
    /// Newest first.
    items: Vec<DeliveryView>,
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListDeliveries {
    /// Largest number of deliveries in the answer.
    #[param(minimum = 1, maximum = 200, default = 50)]
    limit: Option<u32>,
}

/// List webhook deliveries
///
/// Kept for a week. Deliveries with a wrong signature are not stored; `mayfly_webhooks_total` counts them.
#[utoipa::path(
    get, path = "/webhooks/{source}/deliveries", tag = "jobs",
    params(("source" = String, Path, description = "Name of the source of jobs", example = "github"), ListDeliveries),
    responses((status = 200, description = "The newest deliveries", body = DeliveryList, example = json!(examples::deliveries()))),
    security(("token" = ["read"])),
)]
pub async fn list_deliveries(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Name(source): Name,
    Query(asked): Query<ListDeliveries>,
) -> Result<Answer<DeliveryList>, Problem> {
    let source = SourceName::new(&source).map_err(|what| Problem::invalid("path:source", what))?;
    let items = http.services.webhooks.list_deliveries(&source, page_size(asked.limit)?).await?;
    Ok(Answer(DeliveryList { items: items.into_iter().map(DeliveryView::from).collect() }))
}
