//! Imports templates from the layouts of other programs, and exports templates into them.
//!
//! In the catalog, a macOS guest always has Tart's layout: `config.json`, a disk, and the firmware's variables. Other
//! layouts are converted on import and export. What has no counterpart in the target layout is reported in a notice;
//! what would change the guest is refused.
//!
//! ```text
//! import    a directory, a description or an image ─▶ NewTemplate ─▶ catalog
//!   tart, bundle, macosvm    one reader and writer per layout
//!   image                    qcow2 and raw
//!     chain                  the files of a qcow2 image
//!     cloud_hypervisor       finds image and kernel in a host's tree
//!     linux                  extracts kernel and initramfs from a guest's disk
//! export    a template ─▶ a directory or an image
//!   stage                    built aside, flushed, and published by one rename
//! source    checks of a source before it is read: path tricks, running guests
//! payload   the opaque data of Apple's framework
//! place     where an image comes from and goes to
//! ```

mod bundle;
mod chain;
mod cloud_hypervisor;
mod export;
mod image;
mod import;
pub(super) mod linux;
mod macosvm;
pub mod payload;
mod place;
pub(super) mod qemu_img;
mod source;
mod stage;
mod tart;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::payload::{HardwareModel, MachineIdentity};
pub use self::{
    export::export,
    import::{PreparedImport, import},
    place::ExportDestination,
};
use super::{
    NewTemplate,
    read_budget::{CancelOnDrop, StopFlag},
};
use crate::domain::{Code, Error, Result, mac::Mac, tart_config::Display};

/// What a template looks like outside of the catalog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema, strum::IntoStaticStr)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "snake_case")]
#[schema(as = Layout)]
pub enum TemplateLayout {
    /// Directory of a VM of Tart.
    Tart,
    /// Template bundle of shoes-vz.
    #[strum(serialize = "shoes-vz")]
    ShoesVz,
    /// A `vm.json` of macosvm, with the files that it names.
    Macosvm,
    /// A qcow2 image, with a kernel and initramfs beside it where there are some.
    Qcow2,
    /// A raw image, with a kernel and initramfs beside it where there are some.
    Raw,
    /// Directory with `snapshots/NAME.N.qcow2` and `kernels/`, or one of its images. For imports only.
    #[strum(serialize = "cloud-hypervisor")]
    CloudHypervisor,
}

impl TemplateLayout {
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    pub fn is_image(self) -> bool {
        matches!(self, TemplateLayout::Qcow2 | TemplateLayout::Raw | TemplateLayout::CloudHypervisor)
    }
}

/// Whether something that makes a machine itself goes along or is made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    Keep,
    Regenerate,
}

/// Something that did not go along as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Notice {
    /// The file, or the key in it.
    pub field: String,
    pub detail: String,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Notices(Vec<Notice>);

impl Notices {
    fn add(&mut self, field: impl Into<String>, detail: impl Into<String>) {
        self.0.push(Notice { field: field.into(), detail: detail.into() });
    }
}

#[derive(Debug)]
pub struct ImportRequest {
    pub layout: TemplateLayout,
    pub from: ExportDestination,
    /// Settings of the template besides its files. The layout finds the disk.
    pub template: NewTemplate,
    pub identity: Policy,
    pub mac: Policy,
    /// A suspended VM is imported without its memory.
    pub discard_memory: bool,
    /// Files that a `vm.json` names may be outside of its directory.
    pub allow_outside: bool,
    /// Backing files may be outside of the image's directory.
    pub allow_backing: bool,
    /// Kernel and initramfs are extracted from the disk.
    pub extract_kernel: bool,
}

#[derive(Debug)]
pub struct ExportRequest {
    pub layout: TemplateLayout,
    pub to: ExportDestination,
    pub identity: Policy,
    pub mac: Policy,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenFile {
    pub path: PathBuf,
    pub bytes: u64,
}

#[derive(Debug)]
pub struct Exported {
    pub files: Vec<WrittenFile>,
    pub notices: Vec<Notice>,
}

/// Programs of the host that conversions need.
#[derive(Clone, Debug)]
pub struct Tools {
    pub qemu_img: PathBuf,
}

impl Default for Tools {
    fn default() -> Self {
        Self { qemu_img: "qemu-img".into() }
    }
}

/// A macOS guest, in any layout.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MacMachine {
    model: HardwareModel,
    identity: MachineIdentity,
    cpus: u32,
    memory_bytes: u64,
    mac: Option<Mac>,
    display: Option<Display>,
}

/// The source does not match its layout.
fn invalid(field: impl AsRef<str>, what: impl AsRef<str>) -> Error {
    refused(Code::TemplateInvalid, field, what)
}

fn refused(code: Code, field: impl AsRef<str>, what: impl AsRef<str>) -> Error {
    let (field, what) = (field.as_ref(), what.as_ref());
    Error::new(code, format!("{field} {what}")).field(format!("/path/{field}"), what)
}

/// Runs file operations on a blocking thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(Error::internal)?
}

/// The same for work on a file that may be large or hostile: it stops when the future of its caller is dropped.
async fn cancellable<T: Send + 'static>(work: impl FnOnce(&StopFlag) -> Result<T> + Send + 'static) -> Result<T> {
    let stop = StopFlag::default();
    let _cancel = CancelOnDrop(stop.clone());
    blocking(move || work(&stop)).await
}

#[cfg(test)]
mod tests;
