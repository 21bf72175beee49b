//! The artifact that a template is in a registry: Tart's own format, or Mayfly's.
//!
//! ```text
//! reference  what an image is asked for by
//! digest     what it is known by
//! document   the JSON that registries keep
//! manifest   what it consists of, read and checked, and written
//!   form     what each of the two formats is made of
//! index      a list of images, one for each platform
//! settings   what an image of Mayfly's says of its template
//! lz4        the codec of its disk
//! ```

pub mod digest;
pub mod document;
pub mod form;
pub mod index;
pub mod lz4;
pub mod manifest;
pub mod manifest_error;
pub mod reference;
pub mod settings;

pub use digest::Digest;
pub use form::{ImageFormat, Role};
pub use index::Index;
pub use manifest::Image;
pub use reference::Reference;
pub use settings::Settings;
