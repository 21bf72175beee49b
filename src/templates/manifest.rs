//! The content of a template's digest: its settings, and the digest and size of each file.
//!
//! The digest of a file covers the whole file, or consists of the digests of its chunks: a disk that arrived in
//! verified chunks would otherwise have to be read again. In both cases the template's digest covers every byte.
//!
//! The digest is computed over the stored bytes, so it can be checked without a canonical form. The same template
//! always gives the same bytes, because the order of fields and files is fixed.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256};

use crate::domain::{
    Arch, Budgets, BudgetsPatch, GuestOs, Handover, NetworkMode, ready_check::ReadyCheck, template::DiskFormat,
};
use crate::registry::oci::{ImageSettings, Role};

pub(super) const FILE_NAME: &str = "manifest.json";
/// For a template that was created from files.
pub(super) const VERSION: u32 = 1;
/// For a pulled template: the disk has digests by chunk, and `image` is its origin.
pub(super) const VERSION_PULLED: u32 = 2;

/// A file of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Disk,
    Kernel,
    Initramfs,
    Firmware,
    Config,
    Nvram,
    SshKey,
    SshPassword,
}

impl From<Role> for Part {
    fn from(role: Role) -> Part {
        match role {
            Role::Config => Part::Config,
            Role::Nvram => Part::Nvram,
            Role::Kernel => Part::Kernel,
            Role::Initramfs => Part::Initramfs,
            Role::Firmware => Part::Firmware,
        }
    }
}

impl Part {
    /// The parts that an image may contain: secrets never leave their host.
    pub const SHARED: [Part; 6] =
        [Part::Disk, Part::Kernel, Part::Initramfs, Part::Firmware, Part::Config, Part::Nvram];

    pub fn name(self) -> &'static str {
        match self {
            Part::Disk => "disk",
            Part::Kernel => "kernel",
            Part::Initramfs => "initramfs",
            Part::Firmware => "firmware",
            Part::Config => "config",
            Part::Nvram => "nvram",
            Part::SshKey => "ssh_key",
            Part::SshPassword => "ssh_password",
        }
    }

    pub fn mode(self) -> u32 {
        match self {
            Part::Disk | Part::Kernel | Part::Initramfs | Part::Firmware | Part::Config | Part::Nvram => 0o444,
            Part::SshKey | Part::SshPassword => 0o600,
        }
    }

    pub fn is_secret(self) -> bool {
        self.mode() == 0o600
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TemplateManifest {
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
    /// Absent in templates of versions without it, which keep their digests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkMode>,
    /// Likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready: Option<ReadyCheck>,
    /// Those that the template sets itself.
    #[serde(deserialize_with = "own_budgets")]
    pub budgets: BudgetsPatch,
    /// Absent in version 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<Origin>,
    /// The image's own settings, if it has them in a separate document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settings: Option<ImageSettings>,
    /// By the name in the template's directory.
    pub files: BTreeMap<String, FileEntry>,
}

/// Earlier versions copied all budgets into a template, also the default wait in the queue. Of those, the ones that
/// differ from the defaults count as set by the template.
fn own_budgets<'de, D: Deserializer<'de>>(from: D) -> Result<BudgetsPatch, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum StoredBudgets {
        Own(BudgetsPatch),
        All(Budgets),
    }
    Ok(match StoredBudgets::deserialize(from)? {
        StoredBudgets::Own(own) => own,
        StoredBudgets::All(all) => BudgetsPatch::differing(&all, &Budgets::default()),
    })
}

/// The image that a template was pulled from. Without the tag, which may move to another image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// `host[:port]/namespace`.
    pub repository: String,
    /// Digest of the image's manifest.
    pub digest: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum FileEntry {
    Whole { sha256: String, size: u64 },
    Pieces { size: u64, pieces: Vec<RecordedPiece> },
}

/// A chunk of a file, in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RecordedPiece {
    pub sha256: String,
    pub size: u64,
}

impl FileEntry {
    pub fn size(&self) -> u64 {
        match self {
            FileEntry::Whole { size, .. } | FileEntry::Pieces { size, .. } => *size,
        }
    }

    pub fn in_pieces(pieces: Vec<RecordedPiece>) -> FileEntry {
        FileEntry::Pieces { size: pieces.iter().map(|p| p.size).sum(), pieces }
    }

    /// `None`, or its fault, without comparing it to the files.
    fn fault(&self) -> Option<&'static str> {
        match self {
            FileEntry::Whole { .. } => None,
            FileEntry::Pieces { size, pieces } => {
                let sum = pieces.iter().try_fold(0_u64, |sum, p| sum.checked_add(p.size));
                (sum != Some(*size)).then_some("its pieces do not add up to its size")
            }
        }
    }
}

impl TemplateManifest {
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec_pretty(self)
    }

    /// Reads the output of `to_bytes`. An unknown version may have another meaning, and is refused.
    pub fn from_bytes(bytes: &[u8]) -> Result<TemplateManifest, String> {
        let manifest: TemplateManifest = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        if !matches!(manifest.version, VERSION | VERSION_PULLED) {
            return Err(format!("it has version {}, and {VERSION_PULLED} is the newest known here", manifest.version));
        }
        match manifest.files.iter().find_map(|(name, entry)| Some((name, entry.fault()?))) {
            Some((name, fault)) => Err(format!("{name}: {fault}")),
            None => Ok(manifest),
        }
    }
}

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// `sha256:<hex>`.
pub(super) fn digest(manifest: &[u8]) -> String {
    format!("sha256:{}", sha256(manifest))
}

/// The directory of a digest, or `None` if it is not valid.
pub(super) fn directory(digest: &str) -> Option<String> {
    let hex = digest.strip_prefix("sha256:")?;
    let well_formed = hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    well_formed.then(|| format!("sha256-{hex}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::GuestOs;

    fn manifest(version: u32, image: Option<Origin>, disk: FileEntry) -> TemplateManifest {
        TemplateManifest {
            version,
            driver: "tart".into(),
            os: GuestOs::Macos,
            arch: Arch::Aarch64,
            disk_format: DiskFormat::Raw,
            disk_virtual_bytes: disk.size(),
            cpus: 4,
            memory_mib: 4096,
            cmdline: None,
            handover: Handover::Agent,
            user: "admin".into(),
            network: None,
            ready: None,
            budgets: BudgetsPatch::default(),
            image,
            settings: None,
            files: BTreeMap::from([("disk".to_owned(), disk)]),
        }
    }

    #[test]
    fn budgets_that_an_earlier_version_copied_are_not_the_templates_own() {
        let own = BudgetsPatch { boot_seconds: Some(7), ..BudgetsPatch::default() };
        let whole = FileEntry::Whole { sha256: sha256(b"a"), size: 1 };
        let now = TemplateManifest { budgets: own.clone(), ..manifest(VERSION, None, whole) };
        let mut written = serde_json::to_value(&now).unwrap();
        assert_eq!(written["budgets"], serde_json::json!({ "boot_seconds": 7 }));
        let read = |written: &serde_json::Value| {
            TemplateManifest::from_bytes(&serde_json::to_vec(written).unwrap()).unwrap().budgets
        };
        assert_eq!(read(&written), own);
        let copied = Budgets { boot_seconds: 7, queue_seconds: 77, ..Budgets::default() };
        written["budgets"] = serde_json::to_value(copied).unwrap();
        assert_eq!(read(&written), own);
    }

    #[test]
    fn both_versions_are_read_and_no_other() {
        let whole = manifest(VERSION, None, FileEntry::Whole { sha256: sha256(b"a"), size: 1 });
        let bytes = whole.to_bytes().unwrap();
        // Templates from versions without images keep their digest.
        assert!(!String::from_utf8_lossy(&bytes).contains("image"));
        assert!(!String::from_utf8_lossy(&bytes).contains("network"));
        assert!(!String::from_utf8_lossy(&bytes).contains("ready"));
        assert_eq!(TemplateManifest::from_bytes(&bytes), Ok(whole.clone()));

        let origin = Origin { repository: "registry.example.com/acme/macos".into(), digest: digest(b"") };
        let piece = |content: &[u8]| RecordedPiece { sha256: sha256(content), size: content.len() as u64 };
        let entry = FileEntry::in_pieces(vec![piece(b"first"), piece(b"second")]);
        let pulled = manifest(VERSION_PULLED, Some(origin), entry);
        assert_eq!(pulled.files["disk"].size(), 11);
        assert_eq!(TemplateManifest::from_bytes(&pulled.to_bytes().unwrap()), Ok(pulled.clone()));

        let newer = TemplateManifest { version: 3, ..whole }.to_bytes().unwrap();
        assert!(TemplateManifest::from_bytes(&newer).unwrap_err().contains("version 3"));
        let short = FileEntry::Pieces { size: 12, pieces: vec![piece(b"first"), piece(b"second")] };
        let short = TemplateManifest { files: BTreeMap::from([("disk".to_owned(), short)]), ..pulled };
        assert!(TemplateManifest::from_bytes(&short.to_bytes().unwrap()).unwrap_err().contains("add up"));
    }
}
