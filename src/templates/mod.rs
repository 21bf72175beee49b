//! Templates on this host: immutable, content addressed, named.
//!
//! ```text
//! <dir>/sha256-<hex>/   manifest.json disk [kernel] [initramfs] [firmware] [ssh_key]    0444, the key 0600
//! <dir>/names/<name>    the digest that the name points at
//! <dir>/staging/        what is being made or removed; never looked at by anybody else
//! ```
//!
//! What has a digest is complete and checked: it got its place by one rename, after all of it was written, checked and
//! flushed. A template is never changed; another content is another digest. Whether a vm still needs one is not known here:
//! callers ask before they remove.
//!
//! ```text
//! catalog    names, digests, publishing and removing
//!   check    what a new template must be
//!     qcow2  what a qcow2 file must be
//!   import   a file into the catalog, by copy-on-write where the file system can
//!   manifest what the digest is made of
//! ```

mod catalog;
mod check;
mod import;
mod manifest;
mod qcow2;

use std::path::PathBuf;

pub use catalog::Catalog;
pub use check::is_name;

use crate::domain::{Arch, Budgets, GuestOs, Handover, template::DiskFormat};

/// A template to be registered. Its files are imported and not needed afterwards.
#[derive(Clone, Debug)]
pub struct NewTemplate {
    pub name: String,
    pub driver: String,
    pub os: GuestOs,
    pub arch: Arch,
    pub disk: PathBuf,
    /// `None`: taken from the file, when its name and its content agree.
    pub disk_format: Option<DiskFormat>,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
    pub ssh_key: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub cpus: u32,
    pub memory_mib: u32,
    pub handover: Handover,
    pub user: String,
    pub budgets: Budgets,
}
