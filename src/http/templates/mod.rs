//! Shows and deletes templates. `create` registers them, `names` moves names and pins versions, `prune` frees space,
//! `push` publishes templates, `set` changes settings and `verify` checks for damage.

use std::{path::PathBuf, sync::Arc};

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Admin, Allowed, Read},
    extract::Name,
    openapi::examples,
    problem::Problem,
};
use crate::domain::{Budgets, BudgetsPatch, ready_check::ReadyCheck};

pub mod create;
pub mod export;
pub mod import;
pub mod names;
pub mod prune;
pub mod push;
pub mod set;
pub mod verify;
mod view;
pub mod watch;

pub use view::TemplateView;

/// The current state of a template.
async fn shown(http: &Http, name: &str) -> Result<TemplateView, Problem> {
    let (template, status) = http.services.templates.get_with_status(name).await?;
    Ok(TemplateView::new(template, status, http.services.templates.default_budgets()))
}

/// Refuses a readiness check that cannot work. `usual`: the budgets of templates that do not set their own.
fn check_ready(ready: Option<&ReadyCheck>, budgets: &BudgetsPatch, usual: &Budgets) -> Result<(), Problem> {
    if let Some(ready) = ready {
        ready.check()?;
        ready.check_within(budgets.on(usual).configure_seconds)?;
    }
    Ok(())
}

/// Refuses relative paths, because the service's working directory is not the caller's.
fn absolute(paths: &[(&str, Option<&PathBuf>)]) -> Result<(), Problem> {
    for (pointer, path) in paths {
        if path.is_some_and(|path| !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0)) {
            return Err(Problem::invalid(*pointer, "must be an absolute path on the service's host"));
        }
    }
    Ok(())
}

#[derive(Serialize, ToSchema)]
pub struct TemplateList {
    items: Vec<TemplateView>,
}

/// List templates
#[utoipa::path(
    get, path = "/templates", tag = "templates",
    responses((status = 200, description = "All templates of this host", body = TemplateList, example = json!({"items": [examples::template()]}))),
    security(("token" = ["read"])),
)]
pub async fn list_templates(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
) -> Result<Answer<TemplateList>, Problem> {
    let templates = http.services.templates.list_with_status().await?;
    let usual = http.services.templates.default_budgets();
    let items = templates.into_iter().map(|(t, status)| TemplateView::new(t, status, usual)).collect();
    Ok(Answer(TemplateList { items }))
}

/// Read a template
#[utoipa::path(
    get, path = "/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    responses((status = 200, description = "The template", body = TemplateView, example = json!(examples::template()))),
    security(("token" = ["read"])),
)]
pub async fn get_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Name(name): Name,
) -> Result<Answer<TemplateView>, Problem> {
    Ok(Answer(shown(&http, &name).await?))
}

/// Delete a template
///
/// Refused while a live vm uses it. Deletes the name with its history, and also the files, unless another name
/// points at them or may be rolled back to them, or a pin keeps them. With a digest, a version without a name is
/// deleted.
#[utoipa::path(
    delete, path = "/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    responses((status = 204, description = "The template was deleted")),
    security(("token" = ["admin"])),
)]
pub async fn delete_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    http.services.templates.delete(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
