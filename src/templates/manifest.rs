//! What a template's digest is made of: its settings, and the digest and size of each of its files.
//!
//! The digest is taken over the bytes as they are stored, so it can be checked without agreeing on a canonical form; that the
//! same template always gives the same bytes follows from the fixed order of fields and files.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::import;
use crate::domain::{Arch, Budgets, GuestOs, Handover, template::DiskFormat};

pub(super) const FILE_NAME: &str = "manifest.json";
pub(super) const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub version: u32,
    pub driver: String,
    pub os: GuestOs,
    pub arch: Arch,
    pub disk_format: DiskFormat,
    pub disk_virtual_bytes: u64,
    pub cpus: u32,
    pub memory_mib: u32,
    pub cmdline: Option<String>,
    pub handover: Handover,
    pub user: String,
    pub budgets: Budgets,
    /// By the name in the template's directory.
    pub files: BTreeMap<String, FileEntry>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileEntry {
    pub sha256: String,
    pub size: u64,
}

impl Manifest {
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }
}

/// `sha256:<hex>`.
pub(super) fn digest(manifest: &[u8]) -> String {
    format!("sha256:{}", import::sha256(manifest))
}

/// The directory of a digest, or `None` when it is not one.
pub(super) fn directory(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    let well_formed = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| format!("sha256-{hex}"))
}
