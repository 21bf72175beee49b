//! Disks: copy-on-write clones by `qemu-img`, and the lock that protects a template meanwhile.
//!
//! Formats are always given explicitly. Otherwise a raw disk into whose first sector the guest wrote a qcow2 header
//! would be opened as qcow2, with a backing file of the guest's choice.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;

use super::{DriverError, ErrorKind, Result, failure, qemu_words, template_lock::lock_shared};
use crate::{
    domain::{Code, template::DiskFormat},
    platform::process::Command,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Result of `qemu-img info` for one image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Size of the disk in the guest.
    pub virtual_bytes: u64,
    /// Disk space that the file uses.
    pub actual_bytes: u64,
    /// The image's backing file.
    pub backing: Option<PathBuf>,
    /// A qcow2 with an external data file.
    pub data_file: Option<PathBuf>,
}

/// Creates `clone` as a copy-on-write overlay of `template`. It appears by rename, complete or not at all.
pub async fn clone(
    qemu_img: &Path,
    template: &Path,
    format: DiskFormat,
    unfinished: &Path,
    clone: &Path,
) -> Result<()> {
    let _kept = lock_shared(template).await?;
    let output = Command::new(qemu_img, DEADLINE)
        .args(["create", "-q", "-f", "qcow2", "-F", format.as_str(), "-b"])
        .arg(template)
        .arg(unfinished)
        .run()
        .await
        .map_err(|error| failure::command(error, Code::CloneFailed))?;
    if !output.status.success() {
        return Err(qemu_words::clone(&output.stderr_tail));
    }
    tokio::fs::rename(unfinished, clone)
        .await
        .map_err(|error| failure::io(error, Code::CloneFailed, "the clone could not be put in place"))
}

/// Reads an image's header. The format is given, not guessed.
pub async fn info(qemu_img: &Path, image: &Path, format: DiskFormat) -> Result<Info> {
    let output = Command::new(qemu_img, DEADLINE)
        // Without `-U`, an image that a guest uses cannot be read.
        .args(["info", "-U", "--output=json", "-f", format.as_str()])
        .arg(image)
        .run()
        .await
        .map_err(|error| failure::command(error, Code::CloneFailed))?;
    if !output.status.success() {
        return Err(qemu_words::clone(&output.stderr_tail));
    }
    parse_info(&output.stdout, format).map_err(|why| {
        let summary = format!("`qemu-img info` of {} was not understood: {why}", image.display());
        DriverError::new(ErrorKind::Permanent, Code::TemplateInvalid, summary)
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawInfo {
    format: String,
    virtual_size: u64,
    actual_size: u64,
    full_backing_filename: Option<PathBuf>,
    backing_filename: Option<PathBuf>,
    format_specific: Option<FormatSpecific>,
}

#[derive(Deserialize)]
struct FormatSpecific {
    data: Option<Specific>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Specific {
    data_file: Option<PathBuf>,
}

fn parse_info(json: &[u8], format: DiskFormat) -> std::result::Result<Info, String> {
    let raw: RawInfo = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if raw.format != format.as_str() {
        return Err(format!("its format is {}, not {}", raw.format, format.as_str()));
    }
    Ok(Info {
        virtual_bytes: raw.virtual_size,
        actual_bytes: raw.actual_size,
        backing: raw.full_backing_filename.or(raw.backing_filename),
        data_file: raw.format_specific.and_then(|f| f.data).and_then(|d| d.data_file),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_answers_are_understood() {
        let overlay = parse_info(include_bytes!("fixtures/info-overlay.json"), DiskFormat::Qcow2).unwrap();
        assert_eq!(overlay.virtual_bytes, 1 << 20);
        assert_eq!(overlay.backing.as_deref(), Some(Path::new("/tmp/base.raw")));
        assert_eq!(overlay.data_file, None);

        let raw = parse_info(include_bytes!("fixtures/info-raw.json"), DiskFormat::Raw).unwrap();
        assert_eq!((raw.virtual_bytes, raw.backing), (1 << 20, None));

        let external = parse_info(include_bytes!("fixtures/info-data-file.json"), DiskFormat::Qcow2).unwrap();
        assert_eq!(external.data_file.as_deref(), Some(Path::new("data.raw")));
    }

    #[test]
    fn anything_else_is_refused() {
        let raw = include_bytes!("fixtures/info-raw.json");
        assert_eq!(parse_info(raw, DiskFormat::Qcow2).unwrap_err(), "its format is raw, not qcow2");
        assert!(parse_info(b"{}", DiskFormat::Raw).is_err());
        assert!(parse_info(&raw[..raw.len() / 2], DiskFormat::Raw).is_err());
    }
}
