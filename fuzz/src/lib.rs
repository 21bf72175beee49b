//! What is fuzzed: the modules themselves, as source, without the rest of Mayfly.

#[path = "../../src/templates/oci"]
pub mod oci {
    pub mod lz4;
    /// What the decoder is compared with.
    #[path = "lz4/model.rs"]
    pub mod model;
}
