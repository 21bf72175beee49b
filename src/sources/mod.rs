//! Clients of CI systems, one folder each.

pub mod github;
