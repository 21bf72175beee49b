//! The section `[nesting]`.

use std::path::PathBuf;

use crate::{domain::NetworkMode, platform::settings::section};

section! {
    /// The API of GitLab's `nesting`, for runners of GitLab that use this host with `vm_isolation`; docs/gitlab.md explains it.
    pub struct NestingSection {
        /// Path of the Unix socket, for the service's user only. None: it is not offered.
        socket: Option<PathBuf> = None;
        /// Templates that jobs may name as their image. Needed with `socket`, because authors of jobs choose the image.
        templates: Vec<String> = Vec::new(), shown as "none";
        /// What the guests may reach: `isolated`, `internet` or `host`; docs/networks.md explains them.
        network: NetworkMode = NetworkMode::Internet;
        /// Longest life of a vm, in seconds (60 to 2592000): one that no runner deletes ends then.
        lifetime_seconds: u32 = 86_400, in 60..=2_592_000;
    }
}
