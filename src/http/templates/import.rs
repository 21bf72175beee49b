//! Imports a template from another program's layout.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json as Answer,
    extract::State as FromState,
    http::{HeaderName, StatusCode, header},
};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    super::{
        Http,
        auth::{Admin, Allowed},
        extract::Json,
        middleware::RequestPermit,
        openapi::examples,
        problem::Problem,
    },
    TemplateView, absolute, check_ready, shown,
};
use crate::{
    domain::{Arch, Budgets, BudgetsPatch, Code, GuestOs, Handover, NetworkMode, ready_check::ReadyCheck},
    service::{
        templates::NewTemplate,
        transfers::{ExportDestination, ImportRequest, Notice, Policy, TemplateLayout},
    },
};

/// A template on this host in another program's layout. The files are copied (as clones if the file system supports
/// it), and not changed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ImportRequest)]
pub struct ImportBody {
    #[schema(example = "sequoia")]
    name: String,
    layout: TemplateLayout,
    /// Absolute path. A directory for `tart`, `shoes-vz` and `macosvm` (for `macosvm` also the `vm.json` itself),
    /// else the image, which may also be in S3: `s3://bucket/key`, followed by `#sha256=…` if its content is known.
    #[schema(example = "/opt/myshoes/vz/templates/macos-15")]
    path: String,
    /// For `shoes-vz` and `macosvm`: whether the template keeps the machine's identity; default: `keep`. A Tart VM
    /// always keeps it.
    identity: Option<Policy>,
    /// For `macosvm`: whether the template keeps the Ethernet address; default: `regenerate`. Clones always get
    /// their own.
    mac: Option<Policy>,
    /// For `tart`: import a suspended VM without its saved memory.
    #[serde(default)]
    discard_memory: bool,
    /// For `macosvm`: accept files outside of the `vm.json`'s directory.
    #[serde(default)]
    allow_outside: bool,
    /// For `qcow2`: accept backing files outside of the image's directory. Devices and URLs are never followed.
    #[serde(default)]
    allow_backing: bool,
    /// For an image: extract the newest kernel and its initramfs from the disk.
    #[serde(default)]
    extract_kernel: bool,
    /// The driver that runs it; default: `qemu` for an image, `cloud-hypervisor` with that layout, else `tart`. A macOS guest of
    /// any layout may also be run by `macosvm`.
    driver: Option<String>,
    /// For an image; default: `linux`.
    os: Option<GuestOs>,
    /// For an image; default: that of this host.
    arch: Option<Arch>,
    /// For an image; default: `PATH.kernel` if it exists.
    #[schema(value_type = Option<String>)]
    kernel: Option<PathBuf>,
    /// For an image; default: `PATH.initramfs` if it exists.
    #[schema(value_type = Option<String>)]
    initramfs: Option<PathBuf>,
    /// For an image; default: `PATH.firmware` if it exists.
    #[schema(value_type = Option<String>)]
    firmware: Option<PathBuf>,
    /// Kernel command line of an image. Default with `extract_kernel`: one with the root file system that was
    /// found, and a console.
    cmdline: Option<String>,
    /// Default: that of the source.
    #[schema(minimum = 1)]
    cpus: Option<u32>,
    /// Default: that of the source.
    #[schema(minimum = 32)]
    memory_mib: Option<u32>,
    /// How guests are provisioned. Default: `agent` for Tart, `ssh` for macosvm, else `seed`.
    handover: Option<Handover>,
    /// The user that runs the runner in the guest. Default: `admin` for macOS layouts, else `runner`.
    user: Option<String>,
    /// What guests may reach, unless the request or the pool sets it. Default: the strictest mode that the driver can
    /// enforce and in which the vm's kind of runner can work.
    network: Option<NetworkMode>,
    /// What has to hold in a guest before its runner is started.
    ready: Option<ReadyCheck>,
    /// Private key that the guest's user accepts.
    #[schema(value_type = Option<String>)]
    ssh_key: Option<PathBuf>,
    /// File with the password of the guest's user, readable by its owner only.
    #[schema(value_type = Option<String>)]
    ssh_password_file: Option<PathBuf>,
    /// Budgets that differ from the defaults.
    #[serde(default)]
    budgets: BudgetsPatch,
}

impl ImportBody {
    fn into_request(self, usual: &Budgets) -> Result<ImportRequest, Problem> {
        let layout = self.layout;
        let (image, converted) =
            (layout.is_image(), matches!(layout, TemplateLayout::ShoesVz | TemplateLayout::Macosvm));
        for (pointer, given, fits) in [
            ("/identity", self.identity.is_some(), converted),
            ("/mac", self.mac.is_some(), layout == TemplateLayout::Macosvm),
            ("/discard_memory", self.discard_memory, layout == TemplateLayout::Tart),
            ("/allow_outside", self.allow_outside, layout == TemplateLayout::Macosvm),
            (
                "/allow_backing",
                self.allow_backing,
                matches!(layout, TemplateLayout::Qcow2 | TemplateLayout::CloudHypervisor),
            ),
            ("/extract_kernel", self.extract_kernel, image),
            ("/os", self.os.is_some(), image),
            ("/arch", self.arch.is_some(), image),
            ("/kernel", self.kernel.is_some(), image),
            ("/initramfs", self.initramfs.is_some(), image),
            ("/firmware", self.firmware.is_some(), image),
            ("/cmdline", self.cmdline.is_some(), image),
        ] {
            if given && !fits {
                let what = format!("means nothing to the layout {}: leave it out", layout.as_str());
                return Err(Problem::invalid(pointer, what));
            }
        }
        self.budgets.check()?;
        check_ready(self.ready.as_ref(), &self.budgets, usual)?;
        absolute(&[
            ("/kernel", self.kernel.as_ref()),
            ("/initramfs", self.initramfs.as_ref()),
            ("/firmware", self.firmware.as_ref()),
            ("/ssh_key", self.ssh_key.as_ref()),
            ("/ssh_password_file", self.ssh_password_file.as_ref()),
        ])?;
        let template = NewTemplate {
            driver: self.driver,
            os: self.os,
            arch: self.arch,
            kernel: self.kernel,
            initramfs: self.initramfs,
            firmware: self.firmware,
            cmdline: self.cmdline,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            handover: self.handover,
            user: self.user,
            network: self.network,
            ready: self.ready,
            ssh_key: self.ssh_key,
            ssh_password: self.ssh_password_file,
            budgets: self.budgets,
            // The layout finds the disk.
            ..NewTemplate::of_disk(self.name, PathBuf::new())
        };
        Ok(ImportRequest {
            layout,
            from: ExportDestination::parse(&self.path)?,
            template,
            identity: self.identity.unwrap_or(Policy::Keep),
            mac: self.mac.unwrap_or(Policy::Regenerate),
            discard_memory: self.discard_memory,
            allow_outside: self.allow_outside,
            allow_backing: self.allow_backing,
            extract_kernel: self.extract_kernel,
        })
    }
}

#[derive(Serialize, ToSchema)]
pub struct ImportedTemplate {
    template: TemplateView,
    /// Settings that were changed or left out.
    notices: Vec<Notice>,
}

/// Import a template
///
/// From a Tart VM, a template bundle of shoes-vz, a `vm.json` of macosvm, or a disk image on the service's host.
/// Repeating it with the same content answers 200. Running VMs are refused, and so are VMs that a template cannot
/// represent. Settings without a counterpart are listed in `notices`.
#[utoipa::path(
    post, path = "/templates/import", tag = "templates",
    request_body(content = ImportBody, example = json!(examples::import_request())),
    responses(
        (status = 201, description = "The template is ready", body = ImportedTemplate,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::imported())),
        (status = 200, description = "The same template exists already", body = ImportedTemplate,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::imported())),
    ),
    security(("token" = ["admin"])),
)]
pub async fn import_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Json(body): Json<ImportBody>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Answer<ImportedTemplate>), Problem> {
    permit.disable_timeout();
    let name = body.name.clone();
    let request = body.into_request(http.services.templates.default_budgets())?;
    let before = match http.services.templates.get(&name).await {
        Ok(template) => Some(template.digest),
        Err(error) if error.code == Code::TemplateNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let (template, notices) = http.services.transfers.import(request).await?;
    let status = if before.as_ref() == Some(&template.digest) { StatusCode::OK } else { StatusCode::CREATED };
    let location = format!("/templates/{}", template.name);
    Ok((
        status,
        [(header::LOCATION, location)],
        Answer(ImportedTemplate { template: shown(&http, &template.name).await?, notices }),
    ))
}
