//! The template that is checked: a directory of the catalog or of Tart, a disk, or files that the caller names.

use std::{
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::{
    domain::{
        Arch, Code, Error, GuestOs, Handover, Result,
        tart_config::{self, TartConfig},
        template::DiskFormat,
    },
    platform::files,
    templates::{manifest, manifest::TemplateManifest, qcow2, source_state},
};

/// A manifest with the digests of a large disk's chunks.
const LARGEST_MANIFEST: u64 = 256 << 20;

/// The files and settings of a template.
#[derive(Clone, Debug)]
pub struct LintSubject {
    pub os: GuestOs,
    pub arch: Arch,
    pub disk: PathBuf,
    pub disk_format: DiskFormat,
    pub kernel: Option<PathBuf>,
    pub cmdline: Option<String>,
    pub handover: Handover,
    pub user: String,
    pub ssh_key: Option<PathBuf>,
    pub ssh_password: bool,
    /// Directory of a VM of Tart.
    pub vm_dir: Option<PathBuf>,
    /// A Tart VM's description, if the template has one.
    pub config: Option<PathBuf>,
    pub nvram: Option<PathBuf>,
}

fn invalid(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::new(Code::TemplateInvalid, format!("{} {what}", path.display()))
}

fn read(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = files::open_regular(path).map_err(|what| invalid(path, what))?;
    let size = file.metadata().map_err(|error| invalid(path, format!("cannot be read: {}", error.kind())))?.size();
    if size > most {
        return Err(invalid(path, format!("has {size} bytes, which is more than {most}")));
    }
    std::fs::read(path).map_err(|error| invalid(path, format!("cannot be read: {}", error.kind())))
}

impl LintSubject {
    /// A disk with the settings that `template add` would give it.
    pub fn of_disk(disk: PathBuf) -> Result<LintSubject> {
        let file = files::open_regular(&disk).map_err(|what| invalid(&disk, what))?;
        Ok(LintSubject {
            os: GuestOs::Linux,
            arch: Arch::of_this_host().unwrap_or(Arch::X86_64),
            disk_format: format_of(&file),
            disk,
            kernel: None,
            cmdline: None,
            handover: Handover::Seed,
            user: "runner".to_owned(),
            ssh_key: None,
            ssh_password: false,
            vm_dir: None,
            config: None,
            nvram: None,
        })
    }

    /// The directory of a VM of Tart.
    pub fn of_tart(dir: &Path) -> Result<LintSubject> {
        let config = dir.join(source_state::CONFIG);
        let parsed = TartConfig::parse(&read(&config, tart_config::LARGEST)?).map_err(|what| invalid(&config, what))?;
        let nvram = dir.join("nvram.bin");
        Ok(LintSubject {
            os: parsed.os,
            arch: parsed.arch,
            disk: dir.join(source_state::DISK),
            disk_format: parsed.format,
            kernel: None,
            cmdline: None,
            handover: Handover::Agent,
            user: "admin".to_owned(),
            ssh_key: None,
            ssh_password: false,
            vm_dir: Some(dir.to_owned()),
            config: Some(config),
            nvram: nvram.exists().then_some(nvram),
        })
    }

    /// A version in the catalog below `templates`, by its digest.
    pub fn of_version(templates: &Path, digest: &str) -> Result<LintSubject> {
        let name = manifest::directory(digest)
            .ok_or_else(|| Error::internal(format!("{digest:?} is no digest of a template")))?;
        let dir = templates.join(name);
        let file = dir.join(manifest::FILE_NAME);
        let manifest =
            TemplateManifest::from_bytes(&read(&file, LARGEST_MANIFEST)?).map_err(|what| invalid(&file, what))?;
        let part = |name: &str| manifest.files.contains_key(name).then(|| dir.join(name));
        // Secrets are not in the manifest.
        let secret = |name: &str| Some(dir.join(name)).filter(|path| path.exists());
        Ok(LintSubject {
            os: manifest.os,
            arch: manifest.arch,
            disk: dir.join("disk"),
            disk_format: manifest.disk_format,
            kernel: part("kernel"),
            cmdline: manifest.cmdline.clone(),
            handover: manifest.handover,
            user: manifest.user.clone(),
            ssh_key: secret("ssh_key"),
            ssh_password: secret("ssh_password").is_some(),
            vm_dir: None,
            config: part("config"),
            nvram: part("nvram"),
        })
    }

    /// Whether this is the directory of a VM of Tart.
    pub fn is_tart(dir: &Path) -> bool {
        dir.join(source_state::CONFIG).is_file()
    }
}

fn format_of(file: &File) -> DiskFormat {
    if qcow2::has_magic(file) { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}
