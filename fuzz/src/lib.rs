//! What is fuzzed: the modules themselves, as source, without the rest of Mayfly.

#[path = "../../src/templates/oci"]
pub mod oci {
    pub mod digest;
    pub mod document;
    pub mod form;
    pub mod index;
    pub mod lz4;
    pub mod manifest;
    pub use digest::Digest;
    pub use form::{Kind, Role};
    pub use index::Index;
    pub use manifest::Image;

    /// What the decoder is compared with.
    #[path = "lz4/model.rs"]
    pub mod model;
}
