//! Templates on this host: immutable, content addressed, named.
//!
//! ```text
//! <dir>/sha256-<hex>/   manifest.json disk [kernel] [initramfs] [firmware] [config] [nvram]    0444
//!                       [ssh_key] [ssh_password]                                        0600
//!                       [used] [pinned] [verified] [damaged]            what is noted of it, see `catalog/marks`
//! <dir>/names/<name>    the digest that the name points at, and those that it pointed at before
//! <dir>/staging/        what is being made, pulled or removed; never looked at by anybody else
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
//!   names    what names point at, and pointed at before
//!   marks    what is noted of a version: use, pins, damage
//!   prune    removing what nothing needs
//!   space    how much may be taken, and who was promised some
//!   verify   reading every byte
//!   pulled   what a pull needs of the catalog
//!   pushed   what a push needs of it
//! pull       an image from a registry becomes a template
//! push       a template becomes an image in a registry
//!   registry manifests and blobs, over any number of interruptions
//!   oci      what an image is
//! s3         files of disks in S3, there and back
//! aws        who we are to Amazon
//! ```

mod aws;
mod catalog;
mod check;
mod import;
pub mod layouts;
mod manifest;
pub mod oci;
pub mod pull;
pub mod push;
mod qcow2;
pub mod registry;
pub mod s3;

use std::path::PathBuf;

pub use catalog::{Catalog, Kept, Limits, Surroundings};
pub use check::is_name;

use crate::domain::{Arch, Budgets, GuestOs, Handover, template::DiskFormat};

/// A template to be registered. Its files are imported and not needed afterwards. What is `None` and not a file is taken from
/// `config` where that is given, else it has its usual value.
#[derive(Clone, Debug)]
pub struct NewTemplate {
    /// `None`: it can be had by its digest only.
    pub name: Option<String>,
    pub driver: Option<String>,
    pub os: Option<GuestOs>,
    pub arch: Option<Arch>,
    pub disk: PathBuf,
    /// `None`, without `config`: taken from the file, when its name and its content agree.
    pub disk_format: Option<DiskFormat>,
    pub kernel: Option<PathBuf>,
    pub initramfs: Option<PathBuf>,
    pub firmware: Option<PathBuf>,
    /// A Tart VM's `config.json`; makes this a template of the `tart` driver.
    pub config: Option<PathBuf>,
    /// A Tart VM's `nvram.bin`.
    pub nvram: Option<PathBuf>,
    pub ssh_key: Option<PathBuf>,
    /// A file with the password of `user`; its last line end does not count.
    pub ssh_password: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub cpus: Option<u32>,
    pub memory_mib: Option<u32>,
    pub handover: Option<Handover>,
    pub user: Option<String>,
    pub budgets: Budgets,
}

/// What of a new template has to suit the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    pub driver: String,
    pub os: GuestOs,
    pub handover: Handover,
}

impl NewTemplate {
    /// Its file for this part.
    fn with_part(mut self, part: check::Part, path: PathBuf) -> Self {
        use check::Part;
        let file = match part {
            Part::Disk => {
                self.disk = path;
                return self;
            }
            Part::Kernel => &mut self.kernel,
            Part::Initramfs => &mut self.initramfs,
            Part::Firmware => &mut self.firmware,
            Part::Config => &mut self.config,
            Part::Nvram => &mut self.nvram,
            Part::SshKey => &mut self.ssh_key,
            Part::SshPassword => &mut self.ssh_password,
        };
        *file = Some(path);
        self
    }

    /// One with usual values, from a disk image.
    pub fn of_disk(name: impl Into<String>, disk: impl Into<PathBuf>) -> Self {
        Self {
            name: Some(name.into()),
            driver: None,
            os: None,
            arch: None,
            disk: disk.into(),
            disk_format: None,
            kernel: None,
            initramfs: None,
            firmware: None,
            config: None,
            nvram: None,
            ssh_key: None,
            ssh_password: None,
            cmdline: None,
            cpus: None,
            memory_mib: None,
            handover: None,
            user: None,
            budgets: Budgets::default(),
        }
    }
}
