//! The artifact that a template is in a registry: Tart's own format.
//!
//! ```text
//! reference  what an image is asked for by
//! digest     what it is known by
//! manifest   what it consists of, read and checked
//! lz4        the codec of its disk
//! ```

pub mod digest;
pub mod lz4;
pub mod manifest;
pub mod reference;

pub use digest::Digest;
pub use manifest::Image;
pub use reference::Reference;
