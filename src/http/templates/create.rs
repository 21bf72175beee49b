//! Registers templates: from files, or from an image.

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
        pulls::PullView,
    },
    TemplateView, absolute, check_ready, shown,
};
use crate::{
    domain::{
        Arch, Budgets, BudgetsPatch, Code, GuestOs, Handover, NetworkMode,
        pull::{Canary, PullSpec},
        ready_check::ReadyCheck,
        template::DiskFormat,
    },
    service::templates::NewTemplate,
};

/// A template made from files on this host or from an image. All paths are absolute; the files are copied (as
/// clones if the file system supports it). Set `disk`, or `vm_dir` for a Tart VM, or `image` for an image in a
/// registry.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateRequest {
    #[schema(example = "micro")]
    name: String,
    /// Default: `tart` for Tart VMs and for macOS, else `qemu`.
    driver: Option<String>,
    /// Default: that of the Tart VM, else `linux`.
    os: Option<GuestOs>,
    /// Default: that of the Tart VM, else that of this host.
    arch: Option<Arch>,
    #[schema(value_type = Option<String>, example = "/var/lib/images/micro.qcow2")]
    disk: Option<PathBuf>,
    /// Directory of a Tart VM, with `config.json`, `disk.img` and `nvram.bin`.
    #[schema(value_type = Option<String>, example = json!(null))]
    vm_dir: Option<PathBuf>,
    /// Image in a registry, in Tart's or Mayfly's format: `host/namespace:tag` or `host/namespace@sha256:…`. Its
    /// format is detected.
    #[schema(example = json!(null))]
    image: Option<String>,
    /// Default: detected from the disk, or that of the Tart VM.
    disk_format: Option<DiskFormat>,
    #[schema(value_type = Option<String>)]
    kernel: Option<PathBuf>,
    #[schema(value_type = Option<String>)]
    initramfs: Option<PathBuf>,
    /// UEFI firmware image.
    #[schema(value_type = Option<String>)]
    firmware: Option<PathBuf>,
    /// Private key that the guest's user accepts; `handover: ssh` needs this or the password.
    #[schema(value_type = Option<String>)]
    ssh_key: Option<PathBuf>,
    /// File with the password of the guest's user, readable by its owner only.
    #[schema(value_type = Option<String>)]
    ssh_password_file: Option<PathBuf>,
    /// Kernel command line; only with a kernel.
    cmdline: Option<String>,
    /// Default: that of the Tart VM, else 2.
    #[schema(minimum = 1)]
    cpus: Option<u32>,
    /// Default: that of the Tart VM, else 2048.
    #[schema(minimum = 32)]
    memory_mib: Option<u32>,
    /// How guests are provisioned. Default: `agent` for Tart, `ssh` for macosvm, else `seed`.
    handover: Option<Handover>,
    /// The user that runs the runner in the guest. Default: `admin` for Tart, else `runner`.
    user: Option<String>,
    /// What guests may reach, unless the request or the pool sets it. Never taken from an image. Default: the strictest mode
    /// that the driver can enforce and in which the vm's kind of runner can work.
    network: Option<NetworkMode>,
    /// What has to hold in a guest before its runner is started. Never taken from an image.
    ready: Option<ReadyCheck>,
    /// Budgets that differ from the defaults.
    #[serde(default)]
    budgets: BudgetsPatch,
    /// Test that a vm of the new version must pass before the name points at it; only with `image`.
    canary: Option<Canary>,
}

impl TemplateRequest {
    fn into_pull(self, usual: &Budgets) -> Result<PullSpec, Problem> {
        for (pointer, given) in [
            ("/disk", self.disk.is_some()),
            ("/vm_dir", self.vm_dir.is_some()),
            ("/disk_format", self.disk_format.is_some()),
            ("/driver", self.driver.is_some()),
            ("/os", self.os.is_some()),
            ("/arch", self.arch.is_some()),
            ("/kernel", self.kernel.is_some()),
            ("/initramfs", self.initramfs.is_some()),
            ("/firmware", self.firmware.is_some()),
            ("/cmdline", self.cmdline.is_some()),
        ] {
            if given {
                return Err(Problem::invalid(pointer, "is said by the image itself: leave it out"));
            }
        }
        self.budgets.check()?;
        check_ready(self.ready.as_ref(), &self.budgets, usual)?;
        absolute(&[("/ssh_key", self.ssh_key.as_ref()), ("/ssh_password_file", self.ssh_password_file.as_ref())])?;
        Ok(PullSpec {
            image: self.image.unwrap_or_default(),
            name: self.name,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            handover: self.handover,
            user: self.user,
            network: self.network,
            ready: self.ready,
            ssh_key: self.ssh_key,
            ssh_password: self.ssh_password_file,
            budgets: self.budgets,
            canary: self.canary,
            background: false,
        })
    }

    fn into_new(self, usual: &Budgets) -> Result<NewTemplate, Problem> {
        if self.canary.is_some() {
            return Err(Problem::invalid("/canary", "is for an image: files are registered at once"));
        }
        self.budgets.check()?;
        check_ready(self.ready.as_ref(), &self.budgets, usual)?;
        absolute(&[
            ("/disk", self.disk.as_ref()),
            ("/vm_dir", self.vm_dir.as_ref()),
            ("/kernel", self.kernel.as_ref()),
            ("/initramfs", self.initramfs.as_ref()),
            ("/firmware", self.firmware.as_ref()),
            ("/ssh_key", self.ssh_key.as_ref()),
            ("/ssh_password_file", self.ssh_password_file.as_ref()),
        ])?;
        let (disk, config, nvram) = match (self.disk, self.vm_dir) {
            (Some(disk), None) => (disk, None, None),
            (None, Some(dir)) => (dir.join("disk.img"), Some(dir.join("config.json")), Some(dir.join("nvram.bin"))),
            (Some(_), Some(_)) => return Err(Problem::invalid("/vm_dir", "has a disk of its own: leave `disk` out")),
            (None, None) => {
                return Err(Problem::invalid("/disk", "is missing: name a disk image, or a VM of Tart in `vm_dir`"));
            }
        };
        Ok(NewTemplate {
            name: Some(self.name),
            driver: self.driver,
            os: self.os,
            arch: self.arch,
            disk,
            disk_format: self.disk_format,
            kernel: self.kernel,
            initramfs: self.initramfs,
            firmware: self.firmware,
            config,
            nvram,
            ssh_key: self.ssh_key,
            ssh_password: self.ssh_password_file,
            cmdline: self.cmdline,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            handover: self.handover,
            user: self.user,
            network: self.network,
            ready: self.ready,
            budgets: self.budgets,
        })
    }
}

/// The result: a template, or a pull that will make one.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Registered)]
pub enum RegisteredTemplate {
    Template(Box<TemplateView>),
    Pull(Box<PullView>),
}

/// Register a template
///
/// From files on the service's host: the template is ready when the request is answered. Large disks take some
/// time, because they are read once to compute their digest. From an image in a registry: the request is answered
/// at once with a pull, which continues in the background, also after restarts of the service; `GET /pulls/{id}`
/// shows its progress. Repeating a request with the same content answers 200, with the template or with the pull in
/// progress.
#[utoipa::path(
    post, path = "/templates", tag = "templates",
    request_body(content = TemplateRequest, examples(
        ("files" = (summary = "From files", value = json!(examples::template_request()))),
        ("image" = (summary = "From a registry, with a test", value = json!(examples::pull_request())))
    )),
    responses(
        (status = 201, description = "The template is ready", body = TemplateView,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::template())),
        (status = 202, description = "The image is being pulled", body = PullView,
            headers(("Location" = String, description = "`/pulls/{id}`")), example = json!(examples::pull())),
        (status = 200, description = "The same template exists already, or the same pull is in progress", body = RegisteredTemplate,
            headers(("Location" = String, description = "`/templates/{name}` or `/pulls/{id}`")), example = json!(examples::template())),
    ),
    security(("token" = ["admin"])),
)]
pub async fn create_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    permit: RequestPermit,
    Json(request): Json<TemplateRequest>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Answer<RegisteredTemplate>), Problem> {
    if request.image.is_some() {
        let (pull, new) =
            http.services.pull_admission.start(request.into_pull(http.services.templates.default_budgets())?).await?;
        let status = if new { StatusCode::ACCEPTED } else { StatusCode::OK };
        let location = [(header::LOCATION, format!("/pulls/{}", pull.id))];
        let view = PullView::of(&pull, &http.services);
        return Ok((status, location, Answer(RegisteredTemplate::Pull(Box::new(view)))));
    }
    permit.disable_timeout();
    let new = request.into_new(http.services.templates.default_budgets())?;
    let before = match http.services.templates.get(new.name.as_deref().unwrap_or_default()).await {
        Ok(template) => Some(template.digest),
        Err(error) if error.code == Code::TemplateNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let template = http.services.templates.register(new).await?;
    let status = if before.as_ref() == Some(&template.digest) { StatusCode::OK } else { StatusCode::CREATED };
    let location = [(header::LOCATION, format!("/templates/{}", template.name))];
    Ok((status, location, Answer(RegisteredTemplate::Template(Box::new(shown(&http, &template.name).await?)))))
}
