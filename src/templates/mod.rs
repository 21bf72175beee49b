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
//! progress   how far a transfer is
//! pull       downloads an image from a registry and publishes it as a template
//! push       uploads a template to a registry as an image
//! section    what can be configured
//! layouts    reads and writes the VM directories of other programs
//! ```

mod catalog;
mod check;
mod import;
pub mod layouts;
mod manifest;
pub mod progress;
pub mod pull;
pub mod push;
mod qcow2;
mod section;

pub use catalog::{Catalog, SpaceLimits, TemplateLease, TemplateUsage};
pub use check::is_name;
pub use section::TemplatesSection;

pub use crate::domain::new_template::NewTemplate;
use crate::domain::{GuestOs, Handover};

/// What of a new template has to suit the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverRequirements {
    pub driver: String,
    pub os: GuestOs,
    pub handover: Handover,
}
