//! Changes the settings that a template sets itself.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json as Answer, extract::State as FromState};
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;

use super::{
    super::{
        Http,
        auth::{Admin, Allowed},
        extract::{Json, Name},
        openapi::examples,
        problem::Problem,
    },
    TemplateView, shown,
};
use crate::domain::{NetworkMode, ready_check::ReadyCheck, template_settings::SettingsChange};

/// A change of settings. What is left out stays as it is; null removes a setting, so that the default counts.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateChange {
    /// Null: as it was registered.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 4096)]
    cpus: Option<Option<u32>>,
    /// Null: as it was registered.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 32, maximum = 67108864)]
    memory_mib: Option<Option<u32>>,
    /// Null: the default, see the registration.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<NetworkMode>)]
    network: Option<Option<NetworkMode>>,
    /// Replaced as a whole. Null: guests are not checked.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<ReadyCheck>)]
    ready: Option<Option<ReadyCheck>>,
    /// By the names of the budgets.
    #[serde(default)]
    budgets: BTreeMap<String, Option<u32>>,
}

/// Distinguishes null from a field that is left out.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(from).map(Some)
}

/// Change a template's settings
///
/// Counts for vms that are created from now on. The change belongs to the version that the name points at now; a new version that
/// a watch pulls takes it over. The digest stays the same.
#[utoipa::path(
    patch, path = "/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    request_body(content = TemplateChange, example = json!({ "memory_mib": 4096, "budgets": { "lifetime_seconds": 7200, "idle_seconds": null } })),
    responses((status = 200, description = "The template", body = TemplateView, example = json!(examples::template()))),
    security(("token" = ["admin"])),
)]
pub async fn change_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(request): Json<TemplateChange>,
) -> Result<Answer<TemplateView>, Problem> {
    let TemplateChange { cpus, memory_mib, network, ready, budgets } = request;
    let change = SettingsChange { cpus, memory_mib, network, ready, budgets };
    http.services.templates.change_settings(&name, change).await?;
    Ok(Answer(shown(&http, &name).await?))
}
