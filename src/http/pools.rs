//! Pools: which jobs of a source get vms on this host.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Admin, Allowed, Read},
    extract::{Json, Name},
    fault::FaultView,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::{
    domain::{
        BudgetsPatch, NetworkMode, Pool, Scope, SourceName,
        pool::{PoolSource, USUAL_VMS},
    },
    service::pools::PoolState,
};

/// The settings of a pool.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolRequest {
    /// Template that each vm is cloned from: name or digest of a template, or an image in a registry, which is
    /// pulled when the first job needs it.
    #[schema(example = "macos-tahoe")]
    template: String,
    /// The source of its jobs: the name of a CI server in the service's configuration.
    #[serde(default)]
    #[schema(value_type = String, default = "github")]
    job_source: SourceName,
    /// Where its runners are registered, which decides whose jobs they can get: `owner/name`, an organisation's
    /// login, `enterprises/slug` (GitHub), or `*` for the whole server (Gitea).
    #[schema(value_type = String, example = "acme")]
    scope: Scope,
    /// Labels of its runners, 1 to 100. A job matches the pool if every label that it asks for is among these; at GitHub
    /// regardless of case. No labels are added, not even `self-hosted`.
    labels: Vec<String>,
    /// Name of the runner group (organisations and enterprises only); default: GitHub's default group.
    #[serde(default)]
    group: Option<String>,
    /// Only jobs of these repositories: `owner/name`, where either part may be `*`. Default: all that the scope
    /// covers.
    #[serde(default)]
    repositories: Vec<String>,
    /// Live vms at once; further jobs wait.
    #[serde(default = "usual_vms")]
    #[schema(minimum = 1, maximum = 10000, default = 10)]
    max_vms: u32,
    /// Vms booted ahead of jobs. Not possible yet.
    #[serde(default)]
    #[schema(minimum = 0, maximum = 0, default = 0)]
    warm: u32,
    /// Cores of each vm; default: the template's.
    #[serde(default)]
    #[schema(minimum = 1)]
    cpus: Option<u32>,
    /// Memory of each vm in MiB; default: the template's.
    #[serde(default)]
    #[schema(minimum = 32)]
    memory_mib: Option<u32>,
    /// What its guests may reach; default: the template's, else `internet`, or the next more open mode if the driver cannot
    /// enforce that.
    #[serde(default)]
    network: Option<NetworkMode>,
    /// Budgets that differ from the template's.
    #[serde(default)]
    budgets: BudgetsPatch,
    /// `false`: jobs get no new vms from this pool; existing vms keep their jobs.
    #[serde(default = "yes")]
    #[schema(default = true)]
    enabled: bool,
}

fn usual_vms() -> u32 {
    USUAL_VMS
}

fn yes() -> bool {
    true
}

impl PoolRequest {
    fn named(self, name: String) -> Pool {
        Pool {
            name,
            template: self.template,
            job_source: self.job_source,
            scope: self.scope,
            labels: self.labels,
            group: self.group,
            repositories: self.repositories,
            max_vms: self.max_vms,
            warm: self.warm,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            network: self.network,
            budgets: self.budgets,
            enabled: self.enabled,
        }
    }
}

/// A pool and its current state.
#[derive(Serialize, ToSchema)]
#[schema(as = Pool)]
pub struct PoolView {
    name: String,
    /// Where it is set: a pool in the configuration can only be changed there.
    source: PoolSource,
    template: String,
    /// The source of its jobs.
    #[schema(value_type = String, example = "github")]
    job_source: SourceName,
    #[schema(value_type = String, example = "acme")]
    scope: Scope,
    labels: Vec<String>,
    /// Null: the default group.
    group: Option<String>,
    /// Empty: all that the scope covers.
    repositories: Vec<String>,
    max_vms: u32,
    warm: u32,
    /// Null: the template's.
    cpus: Option<u32>,
    /// Null: the template's.
    memory_mib: Option<u32>,
    /// Null: the template's, else the default.
    network: Option<NetworkMode>,
    /// Null: the template's.
    budgets: BudgetsPatch,
    enabled: bool,
    vms: PoolVmsView,
    /// Jobs that match it and have no runner yet; `GET /jobs?pool=` lists them.
    jobs_waiting: u32,
    /// Why the pool's most recent failed vm failed or was refused, as long as that is kept.
    last_error: Option<FaultView>,
    /// Null for pools in the configuration.
    created_at: Option<Time>,
    updated_at: Option<Time>,
}

/// Vms of a pool that have not reached their end.
#[derive(Serialize, ToSchema)]
pub struct PoolVmsView {
    /// Vms that wait for a slot or for their image.
    queued: u32,
    /// All live vms, including queued ones.
    live: u32,
}

impl From<PoolState> for PoolView {
    fn from(state: PoolState) -> Self {
        let PoolState { pool, source, created_at, updated_at, vms, jobs_waiting, last_error } = state;
        Self {
            name: pool.name,
            source,
            template: pool.template,
            job_source: pool.job_source,
            scope: pool.scope,
            labels: pool.labels,
            group: pool.group,
            repositories: pool.repositories,
            max_vms: pool.max_vms,
            warm: pool.warm,
            cpus: pool.cpus,
            memory_mib: pool.memory_mib,
            network: pool.network,
            budgets: pool.budgets,
            enabled: pool.enabled,
            vms: PoolVmsView { queued: vms.queued, live: vms.live },
            jobs_waiting,
            last_error: last_error.as_ref().map(FaultView::from),
            created_at: created_at.map(Time),
            updated_at: updated_at.map(Time),
        }
    }
}

#[derive(Serialize, ToSchema)]
pub struct PoolList {
    /// By name.
    items: Vec<PoolView>,
}

/// List pools
#[utoipa::path(
    get, path = "/pools", tag = "pools",
    responses((status = 200, description = "All pools, including those in the configuration", body = PoolList, example = json!({"items": [examples::pool()]}))),
    security(("token" = ["read"])),
)]
pub async fn list_pools(FromState(http): FromState<Arc<Http>>, _: Allowed<Read>) -> Result<Answer<PoolList>, Problem> {
    let items = http.services.pools.list().await?.into_iter().map(PoolView::from).collect();
    Ok(Answer(PoolList { items }))
}

/// Read a pool
#[utoipa::path(
    get, path = "/pools/{name}", tag = "pools",
    params(("name" = String, Path, description = "Name", example = "macos")),
    responses((status = 200, description = "The pool as it is now", body = PoolView, example = json!(examples::pool()))),
    security(("token" = ["read"])),
)]
pub async fn get_pool(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Read>,
    Name(name): Name,
) -> Result<Answer<PoolView>, Problem> {
    Ok(Answer(http.services.pools.get(&name).await?.into()))
}

/// Create or replace a pool
///
/// From then on, jobs that match it get vms from it. Existing vms keep their settings. A pool in the configuration
/// cannot be changed here.
#[utoipa::path(
    put, path = "/pools/{name}", tag = "pools",
    params(("name" = String, Path, description = "1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit", pattern = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", example = "macos")),
    request_body(content = PoolRequest, example = json!(examples::pool_request())),
    responses(
        (status = 200, description = "The pool was replaced", body = PoolView, example = json!(examples::pool())),
        (status = 201, description = "The pool was created", body = PoolView, example = json!(examples::pool())),
    ),
    security(("token" = ["admin"])),
)]
pub async fn set_pool(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
    Json(request): Json<PoolRequest>,
) -> Result<(StatusCode, Answer<PoolView>), Problem> {
    let new = http.services.pools.set(request.named(name.clone())).await?;
    let status = if new { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Answer(http.services.pools.get(&name).await?.into())))
}

/// Remove a pool
///
/// Jobs get no new vms from it. Existing vms run until they end.
#[utoipa::path(
    delete, path = "/pools/{name}", tag = "pools",
    params(("name" = String, Path, description = "Name", example = "macos")),
    responses((status = 204, description = "The pool was removed")),
    security(("token" = ["admin"])),
)]
pub async fn remove_pool(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    http.services.pools.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
