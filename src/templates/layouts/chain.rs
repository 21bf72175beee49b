//! Finds and checks the files of a qcow2 image.
//!
//! An image names its backing file, and every program that opens the image opens that file, too. An untrusted image
//! could bring the host's own files into guests this way, so each name is checked before any program follows it:
//! files in the image's own directory are allowed, others only if the caller permits it, and only regular files.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::invalid;
use crate::{
    domain::{Result, template::DiskFormat},
    platform::files,
    templates::{
        qcow2,
        read_budget::{ReadBudget, StopFlag},
    },
};

const LONGEST: usize = 16;

/// The image and its backing files, top first. One entry: it has no backing file.
pub(super) fn of(image: &Path, allow_backing: bool, stop: &StopFlag) -> Result<Vec<PathBuf>> {
    let cannot = |name: &str, error: std::io::Error| invalid(name, format!("cannot be read: {}", error.kind()));
    // The caller names the image itself, and not a link to it.
    files::open_regular(image).map_err(|what| invalid("disk", what))?;
    let mut path = fs::canonicalize(image).map_err(|error| cannot("disk", error))?;
    let home = path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut format = DiskFormat::Qcow2;
    let mut seen = Vec::new();
    let mut chain = Vec::new();
    loop {
        let shown = if chain.is_empty() { "disk".to_owned() } else { format!("backing file {}", path.display()) };
        // Links were resolved and checked; one that took the file's place since then is not followed.
        let file = files::open_regular(&path).map_err(|what| invalid(&shown, what))?;
        let metadata = file.metadata().map_err(|error| cannot(&shown, error))?;
        if seen.contains(&(metadata.dev(), metadata.ino())) {
            return Err(invalid(shown, "is its own backing file"));
        }
        seen.push((metadata.dev(), metadata.ino()));
        if seen.len() > LONGEST {
            return Err(invalid(shown, format!("is the end of more than {LONGEST} images on one another")));
        }
        chain.push(path.clone());
        if format == DiskFormat::Raw {
            if qcow2::has_magic(&file) {
                return Err(invalid(shown, "is a qcow2 image, and the one above it says that it is raw"));
            }
            return Ok(chain);
        }
        let budget = ReadBudget::bounded_by(&file).map_err(|error| cannot(&shown, error))?.until(stop);
        let backing = qcow2::layer(&file, &budget).map_err(|what| invalid(&shown, what))?;
        let Some(backing) = backing else { return Ok(chain) };
        (path, format) = follow(&path, &backing, &home, allow_backing).map_err(|what| invalid(shown, what))?;
    }
}

fn follow(
    overlay: &Path,
    backing: &qcow2::Backing,
    home: &Path,
    allow_backing: bool,
) -> Result<(PathBuf, DiskFormat), String> {
    let name = &backing.name;
    // Distinguishes paths from URLs and other protocols as QEMU does.
    if name.split('/').next().is_some_and(|first| first.contains(':')) {
        return Err(format!(
            "has the backing file {name:?}, and only files are followed: flatten it where it was made"
        ));
    }
    let path = overlay.parent().unwrap_or(Path::new("/")).join(name);
    let real = fs::canonicalize(&path)
        .map_err(|error| format!("has the backing file {}, which cannot be read: {}", path.display(), error.kind()))?;
    if !real.starts_with(home) && !allow_backing {
        return Err(format!(
            "has the backing file {}, which lies outside of {}: move it there, or say `allow_backing` if you know what it is",
            real.display(),
            home.display()
        ));
    }
    let format = match backing.format.as_deref() {
        Some("qcow2") => DiskFormat::Qcow2,
        Some("raw") => DiskFormat::Raw,
        Some(other) => {
            return Err(format!("has a backing file in the format {other:?}, and only qcow2 and raw are read"));
        }
        // The content alone does not decide: a guest that writes a qcow2 header must not turn its disk into one.
        None => {
            return Err(format!(
                "does not say the format of its backing file {}: say it with `qemu-img rebase -u -b FILE -F FORMAT`",
                real.display()
            ));
        }
    };
    Ok((real, format))
}
