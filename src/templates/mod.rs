//! Templates on this host: immutable, identified by their digest, with names.
//!
//! ```text
//! <dir>/sha256-<hex>/   manifest.json disk [kernel] [initramfs] [firmware] [config] [nvram]    0444
//!                       [ssh_key] [ssh_password]                                        0600
//!                       [used] [pinned] [verified] [damaged]            metadata, see `catalog/marks`
//! <dir>/names/<name>    the digest that the name points at, and previous ones
//! <dir>/staging/        work in progress; ignored by everything else
//! ```
//!
//! A directory named by a digest is complete and checked: it was renamed to that name after all of it was written,
//! checked and flushed. A template is never changed; other content has another digest. This layer does not know
//! whether a vm needs a template: callers find out before they remove it.
//!
//! ```text
//! catalog    registers, publishes and removes templates
//!   check    validates new templates
//!     qcow2  validates qcow2 files
//!   import   copies a file into the catalog, by copy-on-write where the file system supports it
//!   manifest the content of the digest
//!   names    current and previous versions of names
//!   marks    metadata of versions: use, pins, damage
//!   prune    removes versions that nothing needs
//!   space    limits and reservations of disk space
//!   verify   reads and checks every byte
//!   pulled   the catalog's interface for pulls
//!   pushed   the catalog's interface for pushes
//! progress   how far a transfer is
//! pull       downloads an image from a registry and publishes it as a template
//! push       uploads a template to a registry as an image
//! section    what can be configured
//! source_state  whether a VM to copy is shut down
//! layouts    reads and writes the VM directories of other programs
//! lint       checks a template for what would make its vms fail
//! ```

mod catalog;
mod check;
mod import;
pub mod layouts;
pub mod lint;
mod manifest;
pub mod progress;
pub mod pull;
pub mod push;
mod qcow2;
mod read_budget;
mod section;
mod source_state;

pub use catalog::{Catalog, SpaceLimits, TemplateLease, TemplateUsage};
pub use check::is_name;
pub use section::TemplatesSection;

pub use crate::domain::new_template::NewTemplate;
use crate::domain::{GuestOs, Handover};

/// The properties of a new template that the driver must support.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverRequirements {
    pub driver: String,
    pub os: GuestOs,
    pub handover: Handover,
}
