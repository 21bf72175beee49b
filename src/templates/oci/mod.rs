//! The artifact that a template is in a registry: Tart's own format.

pub mod lz4;
