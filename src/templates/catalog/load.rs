//! Reads versions from the disk.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use jiff::Timestamp;

use super::{Root, no_template};
use crate::{
    domain::{Code, Error, Result, Template, template::TemplateFiles},
    platform::files,
    templates::manifest::{self, Part, TemplateManifest},
};

/// Why there is no manifest of a digest.
#[derive(Debug, thiserror::Error)]
pub(super) enum ManifestFault {
    #[error("the manifest cannot be read: {}", .0.kind())]
    Unreadable(io::Error),
    #[error("{0}")]
    Wrong(String),
}

impl ManifestFault {
    /// The error, if it says nothing about the manifest. A template must not count as damaged because of it.
    pub fn shortage(self) -> Result<io::Error, ManifestFault> {
        match self {
            ManifestFault::Unreadable(error) if files::is_shortage(&error) => Ok(error),
            fault => Err(fault),
        }
    }
}

impl Root {
    pub(super) fn version(&self, digest: &str, name: &str) -> Result<Template> {
        // An error does not show that it was removed.
        if !self.place(digest)?.try_exists().map_err(Error::internal)? {
            return Err(no_template(name));
        }
        self.load(digest, name)
    }

    pub(super) fn manifest(&self, digest: &str) -> Result<TemplateManifest, ManifestFault> {
        let place = self.place(digest).map_err(|e| ManifestFault::Wrong(e.to_string()))?;
        let bytes = fs::read(place.join(manifest::FILE_NAME)).map_err(ManifestFault::Unreadable)?;
        if manifest::digest(&bytes) != digest {
            return Err(ManifestFault::Wrong("the manifest does not match its digest".into()));
        }
        TemplateManifest::from_bytes(&bytes).map_err(|e| ManifestFault::Wrong(format!("the manifest: {e}")))
    }

    /// Reads a template and checks that its manifest has this digest, and that its files have the sizes of the
    /// manifest.
    pub(super) fn load(&self, digest: &str, name: &str) -> Result<Template> {
        let place = self.place(digest)?;
        let damaged = |what: String| {
            Error::new(
                Code::TemplateInvalid,
                format!("the files of template {name} were changed on disk: {what}; register it again"),
            )
        };
        let path = place.join(manifest::FILE_NAME);
        let manifest = self.manifest(digest).map_err(|fault| match fault.shortage() {
            Ok(error) => Error::internal(error),
            Err(fault) => damaged(fault.to_string()),
        })?;
        let mut size_bytes = 0;
        for (file, entry) in &manifest.files {
            let metadata = fs::metadata(place.join(file)).map_err(|e| match files::is_shortage(&e) {
                true => Error::internal(e),
                false => damaged(format!("{file} cannot be read: {}", e.kind())),
            })?;
            if metadata.len() != entry.size() {
                return Err(damaged(format!("{file} has {} bytes and should have {}", metadata.len(), entry.size())));
            }
            size_bytes += metadata.blocks() * 512;
        }
        let created = fs::metadata(&path).and_then(|m| m.modified()).map_err(Error::internal)?;
        let own = self.own_settings(digest, &manifest)?;
        let file = |part: Part| manifest.files.contains_key(part.name()).then(|| place.join(part.name()));
        Ok(Template {
            name: name.to_owned(),
            digest: digest.to_owned(),
            files: TemplateFiles {
                disk: file(Part::Disk).ok_or_else(|| damaged("it has no disk".into()))?,
                kernel: file(Part::Kernel),
                initramfs: file(Part::Initramfs),
                firmware: file(Part::Firmware),
                config: file(Part::Config),
                nvram: file(Part::Nvram),
                ssh_key: file(Part::SshKey),
                ssh_password: file(Part::SshPassword),
            },
            driver: manifest.driver,
            os: manifest.os,
            arch: manifest.arch,
            disk_format: manifest.disk_format,
            disk_virtual_bytes: manifest.disk_virtual_bytes,
            size_bytes,
            cpus: own.cpus.unwrap_or(manifest.cpus),
            memory_mib: own.memory_mib.unwrap_or(manifest.memory_mib),
            cmdline: manifest.cmdline,
            handover: manifest.handover,
            user: manifest.user,
            network: own.network,
            ready: own.ready,
            budgets: own.budgets,
            created_at: Timestamp::try_from(created).map_err(Error::internal)?,
        })
    }
}
