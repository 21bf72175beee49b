//! Registering a template: from files, or from an image.

use std::{path::PathBuf, sync::Arc};

use axum::{
    Json as Answer,
    extract::State as FromState,
    http::{HeaderName, StatusCode, header},
};
use serde::Deserialize;
use utoipa::ToSchema;

use super::{
    super::{
        Http,
        auth::{Admin, Allowed},
        extract::Json,
        frame::Seat,
        openapi::examples,
        problem::Problem,
    },
    TemplateView,
};
use crate::{
    domain::{Arch, Budgets, Code, GuestOs, Handover, template::DiskFormat},
    service::vms::BudgetsPatch,
    templates::{
        NewTemplate,
        oci::reference::{Reference, ReferenceError},
        pull::PullRequest,
    },
};

/// A template made from files on this host. All paths are absolute; the files are copied, by reference where the file system
/// can. Give `disk`, or `vm_dir` for a VM of Tart, or `image` for one in a registry.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateRequest {
    #[schema(example = "micro")]
    name: String,
    /// `tart` for a VM of Tart and for macOS, else `qemu`, when missing.
    driver: Option<String>,
    /// What the VM of Tart says, else `linux`, when missing.
    os: Option<GuestOs>,
    /// What the VM of Tart says, else this host's own, when missing.
    arch: Option<Arch>,
    #[schema(value_type = Option<String>, example = "/var/lib/images/micro.qcow2")]
    disk: Option<PathBuf>,
    /// Directory of a VM of Tart, with `config.json`, `disk.img` and `nvram.bin`.
    #[schema(value_type = Option<String>, example = json!(null))]
    vm_dir: Option<PathBuf>,
    /// Image in a registry, in Tart's format or Mayfly's: `host/namespace:tag` or `host/namespace@sha256:…`. It says itself what it is.
    #[schema(example = json!(null))]
    image: Option<String>,
    /// Found out from the disk, or what the VM of Tart says, when missing.
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
    /// A file that only its owner may read, with the password of the guest's user.
    #[schema(value_type = Option<String>)]
    ssh_password_file: Option<PathBuf>,
    /// Kernel command line; only with a kernel.
    cmdline: Option<String>,
    /// What the VM of Tart says, else 2, when missing.
    #[schema(minimum = 1)]
    cpus: Option<u32>,
    /// What the VM of Tart says, else 2048, when missing.
    #[schema(minimum = 32)]
    memory_mib: Option<u32>,
    /// `agent` for Tart, else `seed`, when missing.
    handover: Option<Handover>,
    /// The user that runs the runner in the guest; `admin` for Tart, else `runner`, when missing.
    user: Option<String>,
    /// Budgets that differ from the usual ones.
    #[serde(default)]
    budgets: BudgetsPatch,
}

/// What a request asks for.
enum Wanted {
    Files(Box<NewTemplate>),
    Image(Box<PullRequest>),
}

impl TemplateRequest {
    fn into_wanted(self, base: &Budgets) -> Result<Wanted, Problem> {
        match &self.image {
            Some(image) => {
                let image =
                    image.parse().map_err(|error: ReferenceError| Problem::invalid("/image", error.to_string()))?;
                self.into_pull(image, base).map(|pull| Wanted::Image(Box::new(pull)))
            }
            None => self.into_new(base).map(|new| Wanted::Files(Box::new(new))),
        }
    }

    fn into_pull(self, image: Reference, base: &Budgets) -> Result<PullRequest, Problem> {
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
        // Those that are given; what serializes is an object.
        let given = serde_json::to_value(&self.budgets).unwrap_or_default();
        let given = given.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
        Ok(PullRequest {
            budgets_given: given.map(|(name, _)| name.clone()).collect(),
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            handover: self.handover,
            user: self.user,
            ssh_key: self.ssh_key,
            ssh_password: self.ssh_password_file,
            budgets: self.budgets.over(base)?,
            ..PullRequest::new(image, self.name)
        })
    }

    fn into_new(self, base: &Budgets) -> Result<NewTemplate, Problem> {
        let paths = [
            ("/disk", self.disk.as_ref()),
            ("/vm_dir", self.vm_dir.as_ref()),
            ("/kernel", self.kernel.as_ref()),
            ("/initramfs", self.initramfs.as_ref()),
            ("/firmware", self.firmware.as_ref()),
            ("/ssh_key", self.ssh_key.as_ref()),
            ("/ssh_password_file", self.ssh_password_file.as_ref()),
        ];
        for (pointer, path) in paths {
            // Relative to what? The service's directory is not the caller's.
            if path.is_some_and(|path| !path.is_absolute() || path.as_os_str().as_encoded_bytes().contains(&0)) {
                return Err(Problem::invalid(pointer, "must be an absolute path on the service's host"));
            }
        }
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
            budgets: self.budgets.over(base)?,
        })
    }
}

/// Register a template
///
/// From files on the service's host, or from an image in a registry. Repeating it with the same content answers 200. Large disks
/// take their time: they are read once, to know their digest, or pulled. A pull that was cut off goes on where it stopped when
/// it is asked for again.
#[utoipa::path(
    post, path = "/templates", tag = "templates",
    request_body(content = TemplateRequest, example = json!(examples::template_request())),
    responses(
        (status = 201, description = "It is ready to clone", body = TemplateView,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::template())),
        (status = 200, description = "It was here already, the same", body = TemplateView,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::template())),
    ),
    security(("token" = ["admin"])),
)]
pub async fn create_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    seat: Seat,
    Json(request): Json<TemplateRequest>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Answer<TemplateView>), Problem> {
    seat.unhurried();
    let name = request.name.clone();
    let wanted = request.into_wanted(http.service.default_budgets())?;
    let before = match http.service.get_template(&name).await {
        Ok(template) => Some(template.digest),
        Err(error) if error.code == Code::TemplateNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let template = match wanted {
        Wanted::Files(new) => http.service.register_template(*new).await?,
        Wanted::Image(pull) => http.service.pull_template(*pull).await?,
    };
    let status = if before.as_ref() == Some(&template.digest) { StatusCode::OK } else { StatusCode::CREATED };
    let location = format!("/templates/{}", template.name);
    Ok((status, [(header::LOCATION, location)], Answer(template.into())))
}
