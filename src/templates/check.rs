//! What a new template must be. Every field is looked at before anything is copied, so that one answer names all faults.

use std::{
    fs::{self, File},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{NewTemplate, qcow2};
use crate::domain::{Code, Error, GuestOs, Handover, Result, template::DiskFormat};

const LARGEST_KEY: u64 = 64 << 10;

/// `[a-z0-9][a-z0-9._-]{0,62}`: a file name on every file system, and never a digest.
pub fn is_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Disk,
    Kernel,
    Initramfs,
    Firmware,
    SshKey,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Part::Disk => "disk",
            Part::Kernel => "kernel",
            Part::Initramfs => "initramfs",
            Part::Firmware => "firmware",
            Part::SshKey => "ssh_key",
        }
    }

    pub fn mode(self) -> u32 {
        match self {
            Part::Disk | Part::Kernel | Part::Initramfs | Part::Firmware => 0o444,
            Part::SshKey => 0o600,
        }
    }
}

/// A file that will be imported, held open: what was checked is what is read.
#[derive(Debug)]
pub(super) struct Source {
    pub part: Part,
    pub file: File,
}

#[derive(Debug)]
pub(super) struct Checked {
    pub disk_format: DiskFormat,
    pub sources: Vec<Source>,
}

/// Faults by field, folded into one error.
#[derive(Default)]
struct Faults(Vec<(&'static str, String)>);

impl Faults {
    fn add(&mut self, field: &'static str, what: impl Into<String>) {
        self.0.push((field, what.into()));
    }

    fn into_result(self) -> Result<()> {
        let Some((field, what)) = self.0.first() else { return Ok(()) };
        let more = match self.0.len() - 1 {
            0 => String::new(),
            n => format!(" (and {n} more, see `errors`)"),
        };
        let error = Error::new(Code::TemplateInvalid, format!("{field} {what}{more}"));
        Err(self.0.iter().fold(error, |e, (field, what)| e.field(format!("/{field}"), what)))
    }
}

/// One fault, found while importing.
pub(super) fn fault(part: Part, what: impl Into<String>) -> Error {
    let what = what.into();
    Error::new(Code::TemplateInvalid, format!("{} {what}", part.name())).field(format!("/{}", part.name()), what)
}

pub(super) fn check(new: &NewTemplate) -> Result<Checked> {
    let mut faults = Faults::default();
    settings(new, &mut faults);

    let optional = |part, path: &Option<PathBuf>| path.clone().map(|path| (part, path));
    let parts = [
        Some((Part::Disk, new.disk.clone())),
        optional(Part::Kernel, &new.kernel),
        optional(Part::Initramfs, &new.initramfs),
        optional(Part::Firmware, &new.firmware),
        optional(Part::SshKey, &new.ssh_key),
    ];
    let mut disk_format = new.disk_format;
    let mut sources = Vec::new();
    for (part, path) in parts.into_iter().flatten() {
        match open(part, &path) {
            Ok(file) => {
                if part == Part::Disk && disk_format.is_none() {
                    match format_of(&path, &file) {
                        Ok(format) => disk_format = Some(format),
                        Err(what) => {
                            faults.add("disk_format", what);
                            continue;
                        }
                    }
                }
                match content(part, disk_format.unwrap_or(DiskFormat::Raw), &file) {
                    Ok(_) => sources.push(Source { part, file }),
                    Err(what) => faults.add(part.name(), what),
                }
            }
            Err(what) => faults.add(part.name(), what),
        }
    }
    faults.into_result()?;
    Ok(Checked { disk_format: disk_format.unwrap_or(DiskFormat::Raw), sources })
}

fn settings(new: &NewTemplate, faults: &mut Faults) {
    if !is_name(&new.name) {
        faults.add("name", "must match [a-z0-9][a-z0-9._-]{0,62}");
    }
    if new.driver.is_empty() {
        faults.add("driver", "is empty, name one of the drivers in `GET /host`");
    }
    if new.cpus == 0 {
        faults.add("cpus", "must be at least 1");
    }
    if new.memory_mib == 0 {
        faults.add("memory_mib", "must be at least 1");
    }
    let user_starts_well = new.user.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !user_starts_well
        || new.user.len() > 32
        || !new.user.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    {
        faults.add("user", "must match [A-Za-z_][A-Za-z0-9._-]{0,31}");
    }
    if new.kernel.is_none() {
        if new.initramfs.is_some() {
            faults.add("initramfs", "needs a kernel, name it in `kernel`");
        }
        if new.cmdline.is_some() {
            faults.add("cmdline", "needs a kernel, name it in `kernel`");
        }
    }
    if new.cmdline.as_ref().is_some_and(|c| c.len() > 2047 || c.chars().any(char::is_control)) {
        faults.add("cmdline", "must be one line of at most 2047 bytes");
    }
    if new.os == GuestOs::Macos && new.handover == Handover::Seed {
        faults.add("handover", "must be ssh: macOS reads no NoCloud seed");
    }
}

fn open(part: Part, path: &Path) -> Result<File, String> {
    if !path.is_absolute() {
        return Err("must be an absolute path".into());
    }
    // Looked at before it is opened: opening a pipe would wait for its writer.
    let metadata = fs::metadata(path).map_err(|e| format!("cannot be read: {}", e.kind()))?;
    if !metadata.is_file() {
        return Err("must be a regular file".into());
    }
    if part == Part::SshKey && metadata.mode() & 0o077 != 0 {
        return Err("can be read by others, make it private with `chmod 600`".into());
    }
    File::open(path).map_err(|e| format!("cannot be read: {}", e.kind()))
}

/// The format that nobody named. The content alone does not decide: a raw disk holds what its guest wrote, and a guest that
/// writes a qcow2 header must not make its disk one.
fn format_of(path: &Path, file: &File) -> Result<DiskFormat, String> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match (qcow2::has_magic(file), extension == "qcow2") {
        (true, true) => Ok(DiskFormat::Qcow2),
        (false, false) => Ok(DiskFormat::Raw),
        (true, false) => {
            Err("is not named, and the disk is a qcow2 image that is not called so: say qcow2 or raw".into())
        }
        (false, true) => Err("is not named, and the disk is called qcow2 and is none: say raw if it is raw".into()),
    }
}

/// Whether a file can be what it is said to be. Gives the size that the guest sees, for a disk.
pub(super) fn content(part: Part, disk_format: DiskFormat, file: &File) -> Result<Option<u64>, String> {
    let size = file.metadata().map_err(|e| format!("cannot be read: {}", e.kind()))?.len();
    if size == 0 {
        return Err("is empty".into());
    }
    match part {
        Part::Disk => match disk_format {
            DiskFormat::Qcow2 => qcow2::check(file).map(Some),
            DiskFormat::Raw if qcow2::has_magic(file) => {
                Err("is a qcow2 image and not a raw one, set disk_format to qcow2".into())
            }
            DiskFormat::Raw if size % 512 != 0 => {
                Err(format!("has {size} bytes, a raw disk is a multiple of 512: copy or download it again"))
            }
            DiskFormat::Raw => Ok(Some(size)),
        },
        Part::Kernel | Part::Initramfs | Part::Firmware => Ok(None),
        Part::SshKey => private_key(file, size).map(|()| None),
    }
}

fn private_key(file: &File, size: u64) -> Result<(), String> {
    let not_a_key = || "is not a private key that OpenSSH would read".to_owned();
    if size > LARGEST_KEY {
        return Err(not_a_key());
    }
    let mut bytes = vec![0; size as usize];
    file.read_exact_at(&mut bytes, 0).map_err(|e| format!("cannot be read: {}", e.kind()))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| not_a_key())?;
    match russh::keys::decode_secret_key(text, None) {
        // A key file of OpenSSH with a passphrase parses: only its public half can be read.
        Ok(key) if !key.is_encrypted() => Ok(()),
        Ok(_) | Err(russh::keys::Error::KeyIsEncrypted) => {
            Err("has a passphrase, remove it with `ssh-keygen -p`".into())
        }
        Err(_) => Err(not_a_key()),
    }
}
