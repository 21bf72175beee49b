//! Registries of OCI artifacts.

pub mod credentials;
