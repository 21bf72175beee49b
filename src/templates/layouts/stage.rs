//! Builds an export in a directory beside its target, and publishes it by one rename.
//!
//! A crash leaves a directory with a name that only this service uses; it is locked while in use. The next export to
//! the same directory removes those that are not locked.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, RenameFlags, SeekFrom, renameat_with},
    io::Errno,
};
use uuid::Uuid;

use super::WrittenFile;
use crate::{
    domain::{Code, Error, Result},
    platform::files::{self, SpaceGuard, SpaceLow},
    templates::Catalog,
};

const PREFIX: &str = ".mayfly-export-";
const CHUNK: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct ExportStage {
    dir: PathBuf,
    target: PathBuf,
    parent: PathBuf,
    space: SpaceGuard,
    _lock: File,
}

impl Drop for ExportStage {
    fn drop(&mut self) {
        // After it was published, there is nothing here any more.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

impl ExportStage {
    pub fn beside(target: &Path, catalog: &Catalog) -> Result<ExportStage> {
        let (parent, target) = resolved(target)?;
        if catalog.holds(&target) {
            let what = "lies among the service's own templates, choose another directory";
            return Err(Error::new(Code::RequestInvalid, format!("path {what}")).field("/path", what));
        }
        absent(&target)?;
        let failed = |error| failure(&parent, error);
        sweep(&parent).map_err(failed)?;
        let space = catalog.space().at(&parent).map_err(failed)?;
        let dir = parent.join(format!("{PREFIX}{}", Uuid::new_v4()));
        files::create_private_dir(&dir).map_err(failed)?;
        let lock = File::open(&dir).and_then(|lock| lock.lock().map(|()| lock));
        match lock {
            Ok(lock) => Ok(ExportStage { dir, target, parent, space, _lock: lock }),
            Err(error) => {
                let _ = fs::remove_dir(&dir);
                Err(failure(&parent, error))
            }
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The guard that writers into the stage ask before they write.
    pub fn space(&self) -> &SpaceGuard {
        &self.space
    }

    /// The path of the target.
    pub fn target(&self) -> &Path {
        &self.target
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let write = || {
            let mut file = files::create_private(&self.path(name))?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|error| failure(&self.parent, error))
    }

    /// Copies a file of the template, by copy-on-write if possible, else without its holes.
    pub fn clone(&self, from: &Path, name: &str) -> Result<()> {
        let copy = || {
            let to = self.path(name);
            let source = File::open(from)?;
            // Protects the template from removal.
            source.lock_shared()?;
            if reflink_copy::reflink(from, &to).is_err() {
                // A refused clone may have left its empty target.
                let _ = fs::remove_file(&to);
                copy_sparse(&source, &files::create_private(&to)?, &self.space)?;
            }
            let file = File::open(&to)?;
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
            file.sync_all()
        };
        copy().map_err(|error| failure(&self.parent, error))
    }

    /// Publishes the directory itself as the target.
    pub fn publish(self) -> Result<Vec<WrittenFile>> {
        let publish = || {
            let mut written = Vec::new();
            for entry in fs::read_dir(&self.dir)? {
                let entry = entry?;
                written.push(WrittenFile { path: self.target.join(entry.file_name()), bytes: entry.metadata()?.len() });
            }
            written.sort_by(|a, b| a.path.cmp(&b.path));
            files::sync_dir(&self.dir)?;
            put(&self.dir, &self.target)?;
            files::sync_dir(&self.parent)?;
            Ok(written)
        };
        publish().map_err(|error| placed(&self.target, error))
    }

    /// Publishes files as the target and the files beside it, the target last. An existing file beside it with the
    /// same content is from an earlier attempt.
    pub fn publish_files(self, files: &[Finished]) -> Result<Vec<WrittenFile>> {
        let mut written = Vec::new();
        for Finished { name, suffix } in files.iter().rev() {
            let (from, to) = (self.path(name), with_suffix(&self.target, suffix));
            let publish = || {
                let bytes = fs::metadata(&from)?.len();
                File::open(&from)?.sync_all()?;
                match put(&from, &to) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !suffix.is_empty() => {
                        if !same(&from, &to)? {
                            return Err(error);
                        }
                    }
                    other => other?,
                }
                Ok(WrittenFile { path: to.clone(), bytes })
            };
            written.push(publish().map_err(|error| placed(&to, error))?);
        }
        files::sync_dir(&self.parent).map_err(|error| failure(&self.parent, error))?;
        written.reverse();
        Ok(written)
    }
}

fn absent(target: &Path) -> Result<()> {
    match target.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failure(target, error)),
        Ok(_) => Err(placed(target, io::ErrorKind::AlreadyExists.into())),
    }
}

fn placed(target: &Path, error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::AlreadyExists {
        let detail = format!("{} already exists, and nothing is overwritten", target.display());
        return Error::new(Code::DestinationExists, detail)
            .field("/path", "choose another one, or remove what is there");
    }
    failure(target, error)
}

fn failure(place: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            let low = SpaceLow::of(&error).map(|low| format!(": {low} (templates.min_free_bytes)")).unwrap_or_default();
            Error::new(Code::HostUnavailable, format!("no space is left for {}{low}", place.display())).cause(error)
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            let detail = format!("{} cannot be written to: {}", place.display(), error.kind());
            Error::new(Code::RequestInvalid, detail).field("/path", "must be where the service may write").cause(error)
        }
        _ => Error::internal(error),
    }
}

/// A rename that replaces nothing, not even an empty directory.
fn put(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // On file systems without support for the flag, this can only check before the rename.
        Err(Errno::INVAL | Errno::NOTSUP | Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        other => Ok(other?),
    }
}

/// Removes directories of unfinished exports: only those with our prefix, of this user, and not locked.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let entry = entry?;
        let named = entry
            .file_name()
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX))
            .is_some_and(|id| Uuid::try_parse(id).is_ok());
        let path = entry.path();
        let ours = || {
            let metadata = path.symlink_metadata()?;
            Ok::<_, io::Error>(metadata.is_dir() && metadata.uid() == rustix::process::getuid().as_raw())
        };
        if named
            && ours().unwrap_or(false)
            && let Ok(lock) = File::open(&path)
            && lock.try_lock().is_ok()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the files of a failed export");
        }
    }
    Ok(())
}

fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (File::open(one)?, files::open_regular(other).map_err(io::Error::other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; CHUNK], vec![0; CHUNK]);
    loop {
        let n = one.read(&mut a)?;
        if n == 0 {
            return Ok(true);
        }
        other.read_exact(&mut b[..n])?;
        if a[..n] != b[..n] {
            return Ok(false);
        }
    }
}

/// Copies a file without its holes.
fn copy_sparse(from: &File, to: &File, space: &SpaceGuard) -> io::Result<()> {
    let length = from.metadata()?.len();
    to.set_len(length)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    while at < length {
        let (start, end) = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => (start, rustix::fs::seek(from, SeekFrom::Hole(start))?),
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            // The file system does not report holes.
            Err(Errno::INVAL | Errno::NOTSUP) => (at, length),
            Err(error) => return Err(error.into()),
        };
        at = start;
        while at < end {
            let want = usize::try_from(end - at).map_or(CHUNK, |left| left.min(CHUNK));
            from.read_exact_at(&mut buffer[..want], at)?;
            space.write(want, || to.write_all_at(&buffer[..want], at))?;
            at += want as u64;
        }
    }
    Ok(())
}

/// A file in a stage, and its suffix at the target.
#[derive(Debug)]
pub(super) struct Finished {
    pub name: &'static str,
    pub suffix: &'static str,
}

/// The path with a suffix.
pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The resolved parent, and the path based on it.
pub(super) fn resolved(path: &Path) -> Result<(PathBuf, PathBuf)> {
    let wrong = |what: String| Error::new(Code::RequestInvalid, format!("path {what}")).field("/path", what);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(wrong("names no place in a directory".into()));
    };
    let parent = fs::canonicalize(parent).map_err(|error| {
        wrong(format!("has no directory to lie in, make {} first: {}", parent.display(), error.kind()))
    })?;
    if !parent.is_dir() {
        return Err(wrong(format!("cannot lie in {}, which is no directory", parent.display())));
    }
    let path = parent.join(name);
    Ok((parent, path))
}
