//! Importing a template from another program's layout.

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
        frame::Seat,
        openapi::examples,
        problem::Problem,
    },
    TemplateView, absolute, shown,
};
use crate::{
    domain::{Arch, Budgets, BudgetsPatch, Code, GuestOs, Handover},
    templates::{
        NewTemplate,
        layouts::{ExportDestination, ImportRequest, Notice, Policy, TemplateLayout},
    },
};

/// A template that lies on this host in another program's layout. The files are copied, by reference where the file system can,
/// and not changed.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ImportRequest)]
pub struct ImportBody {
    #[schema(example = "sequoia")]
    name: String,
    layout: TemplateLayout,
    /// Absolute. A directory for `tart`, `shoes-vz` and `macosvm` (there also the `vm.json` itself), else the image, which may be
    /// in S3, too: `s3://bucket/key`, with `#sha256=…` behind it if its content is known.
    #[schema(example = "/opt/myshoes/vz/templates/macos-15")]
    path: String,
    /// For `shoes-vz` and `macosvm`: whether the machine's identity is taken over; `keep` when missing. A VM of Tart is taken
    /// as it is.
    identity: Option<Policy>,
    /// For `macosvm`: whether the Ethernet address is taken over; `regenerate` when missing. Clones always have their own.
    mac: Option<Policy>,
    /// For `tart`: take a suspended VM without its memory.
    #[serde(default)]
    discard_memory: bool,
    /// For `macosvm`: take files from outside of the `vm.json`'s directory.
    #[serde(default)]
    allow_outside: bool,
    /// For `qcow2`: take backing files from outside of the image's directory. Devices and URLs are never followed.
    #[serde(default)]
    allow_backing: bool,
    /// For `qcow2` and `raw`: take the newest kernel and its initramfs out of the disk.
    #[serde(default)]
    extract_kernel: bool,
    /// Of an image; `qemu` when missing.
    driver: Option<String>,
    /// Of an image; `linux` when missing.
    os: Option<GuestOs>,
    /// Of an image; this host's own when missing.
    arch: Option<Arch>,
    /// Of an image; `PATH.kernel` when missing and there.
    #[schema(value_type = Option<String>)]
    kernel: Option<PathBuf>,
    /// Of an image; `PATH.initramfs` when missing and there.
    #[schema(value_type = Option<String>)]
    initramfs: Option<PathBuf>,
    /// Of an image; `PATH.firmware` when missing and there.
    #[schema(value_type = Option<String>)]
    firmware: Option<PathBuf>,
    /// Kernel command line of an image. With `extract_kernel`, one that finds the root and the console is made when missing.
    cmdline: Option<String>,
    /// What the source says when missing.
    #[schema(minimum = 1)]
    cpus: Option<u32>,
    /// What the source says when missing.
    #[schema(minimum = 32)]
    memory_mib: Option<u32>,
    /// `agent` for a Mac's guest, else `seed`, when missing.
    handover: Option<Handover>,
    /// The user that runs the runner in the guest; `admin` for a Mac's guest, else `runner`, when missing.
    user: Option<String>,
    /// Private key that the guest's user accepts.
    #[schema(value_type = Option<String>)]
    ssh_key: Option<PathBuf>,
    /// A file that only its owner may read, with the password of the guest's user.
    #[schema(value_type = Option<String>)]
    ssh_password_file: Option<PathBuf>,
    /// Budgets that differ from the usual ones.
    #[serde(default)]
    budgets: BudgetsPatch,
}

impl ImportBody {
    fn into_request(self, base: &Budgets) -> Result<ImportRequest, Problem> {
        let layout = self.layout;
        let (image, converted) =
            (layout.is_image(), matches!(layout, TemplateLayout::ShoesVz | TemplateLayout::Macosvm));
        for (pointer, given, fits) in [
            ("/identity", self.identity.is_some(), converted),
            ("/mac", self.mac.is_some(), layout == TemplateLayout::Macosvm),
            ("/discard_memory", self.discard_memory, layout == TemplateLayout::Tart),
            ("/allow_outside", self.allow_outside, layout == TemplateLayout::Macosvm),
            ("/allow_backing", self.allow_backing, layout == TemplateLayout::Qcow2),
            ("/extract_kernel", self.extract_kernel, image),
            ("/driver", self.driver.is_some(), image),
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
            ssh_key: self.ssh_key,
            ssh_password: self.ssh_password_file,
            budgets: self.budgets.over(base)?,
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
    /// What did not go along as it was.
    notices: Vec<Notice>,
}

/// Import a template
///
/// From a VM of Tart, a template bundle of shoes-vz, a `vm.json` of macosvm, or a disk image on the service's host. Repeating it
/// with the same content answers 200. Refused are sources that run, and those that a template cannot hold; what merely has no
/// counterpart is named in `notices`.
#[utoipa::path(
    post, path = "/templates/import", tag = "templates",
    request_body(content = ImportBody, example = json!(examples::import_request())),
    responses(
        (status = 201, description = "It is ready to clone", body = ImportedTemplate,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::imported())),
        (status = 200, description = "It was here already, the same", body = ImportedTemplate,
            headers(("Location" = String, description = "`/templates/{name}`")), example = json!(examples::imported())),
    ),
    security(("token" = ["admin"])),
)]
pub async fn import_template(
    FromState(http): FromState<Arc<Http>>,
    _: Allowed<Admin>,
    seat: Seat,
    Json(body): Json<ImportBody>,
) -> Result<(StatusCode, [(HeaderName, String); 1], Answer<ImportedTemplate>), Problem> {
    seat.unhurried();
    let name = body.name.clone();
    let request = body.into_request(http.service.default_budgets())?;
    let before = match http.service.get_template(&name).await {
        Ok(template) => Some(template.digest),
        Err(error) if error.code == Code::TemplateNotFound => None,
        Err(error) => return Err(error.into()),
    };
    let (template, notices) = http.service.import_template(request).await?;
    let status = if before.as_ref() == Some(&template.digest) { StatusCode::OK } else { StatusCode::CREATED };
    let location = format!("/templates/{}", template.name);
    Ok((
        status,
        [(header::LOCATION, location)],
        Answer(ImportedTemplate { template: shown(&http, &template.name).await?, notices }),
    ))
}
