//! Templates as OCI images, in two formats: Tart's and Mayfly's.
//!
//! ```text
//! reference  the name of an image
//! digest     its digest
//! document   the JSON documents of the specification
//! manifest   its content, read and checked, or written
//!   form     the structure of the two formats
//! index      a list of images for different platforms
//! settings   the template's settings in an image of Mayfly's format
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
pub use settings::ImageSettings;
