//! Showing and deleting templates; `create` registers them.

use std::sync::Arc;

use axum::{Json as Answer, extract::State as FromState, http::StatusCode};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    Http,
    auth::{Admin, Allowed, Read},
    extract::Name,
    openapi::examples,
    problem::Problem,
    time::Time,
};
use crate::domain::{Arch, Budgets, GuestOs, Handover, Template, template::DiskFormat};

pub mod create;
pub mod export;
pub mod import;

/// A bootable image ready to clone, pinned by digest.
#[derive(Serialize, ToSchema)]
#[schema(as = Template)]
pub struct TemplateView {
    name: String,
    /// `sha256:…` over everything in it.
    digest: String,
    driver: String,
    os: GuestOs,
    arch: Arch,
    disk_format: DiskFormat,
    /// Size of the disk as the guest sees it.
    disk_virtual_bytes: u64,
    /// Space that its files take on this host.
    size_bytes: u64,
    /// Whether the hypervisor boots its kernel directly.
    kernel: bool,
    initramfs: bool,
    firmware: bool,
    ssh_key: bool,
    ssh_password: bool,
    cmdline: Option<String>,
    cpus: u32,
    memory_mib: u32,
    handover: Handover,
    user: String,
    budgets: Budgets,
    created_at: Time,
}

impl From<Template> for TemplateView {
    fn from(t: Template) -> Self {
        Self {
            kernel: t.files.kernel.is_some(),
            initramfs: t.files.initramfs.is_some(),
            firmware: t.files.firmware.is_some(),
            ssh_key: t.files.ssh_key.is_some(),
            ssh_password: t.files.ssh_password.is_some(),
            name: t.name,
            digest: t.digest,
            driver: t.driver,
            os: t.os,
            arch: t.arch,
            disk_format: t.disk_format,
            disk_virtual_bytes: t.disk_virtual_bytes,
            size_bytes: t.size_bytes,
            cmdline: t.cmdline,
            cpus: t.cpus,
            memory_mib: t.memory_mib,
            handover: t.handover,
            user: t.user,
            budgets: t.budgets,
            created_at: t.created_at.into(),
        }
    }
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
    let items = http.service.list_templates().await?.into_iter().map(TemplateView::from).collect();
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
    Ok(Answer(http.service.get_template(&name).await?.into()))
}

/// Delete a template
///
/// Refused while a live vm needs it.
#[utoipa::path(
    delete, path = "/templates/{name}", tag = "templates",
    params(("name" = String, Path, description = "Name or digest", example = "micro")),
    responses((status = 204, description = "It is gone")),
    security(("token" = ["admin"])),
)]
pub async fn delete_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    Name(name): Name,
) -> Result<StatusCode, Problem> {
    http.service.delete_template(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
