//! Checks a source before anything of it is read.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, test_kill_process};

use super::{Notices, invalid, refused};
use crate::{
    domain::{Code, Error, Result},
    platform::files,
    templates::source_state::{self, SourceObstacle},
};

const LARGEST_PID_FILE: u64 = 64;

/// A file of a directory. A link that leads outside is refused: an untrusted template must not bring the host's own
/// files into its guests.
pub(super) fn part(dir: &Path, name: &str) -> Result<PathBuf> {
    optional_part(dir, name)?.ok_or_else(|| invalid(name, format!("is missing in {}", dir.display())))
}

pub(super) fn optional_part(dir: &Path, name: &str) -> Result<Option<PathBuf>> {
    let path = dir.join(name);
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_symlink() => {
            Err(invalid(name, "is a symbolic link, put the file itself into the directory"))
        }
        Ok(metadata) if metadata.is_file() => Ok(Some(path)),
        Ok(_) => Err(invalid(name, "must be a regular file")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(invalid(name, format!("cannot be read: {}", error.kind()))),
    }
}

pub(super) fn directory(path: &Path) -> Result<PathBuf> {
    let wrong = |what: String| Error::new(Code::TemplateInvalid, format!("path {what}")).field("/path", what);
    if path.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
        return Err(wrong(format!("{} is a symbolic link, name the directory that it points at", path.display())));
    }
    let dir = fs::canonicalize(path)
        .map_err(|error| wrong(format!("{} cannot be read: {}", path.display(), error.kind())))?;
    if dir.is_dir() { Ok(dir) } else { Err(wrong(format!("{} must be a directory", path.display()))) }
}

/// Reads a small file completely.
pub(super) fn read(path: &Path, name: &str, most: u64) -> Result<Vec<u8>> {
    let cannot = |error: io::Error| invalid(name, format!("cannot be read: {}", error.kind()));
    let file = files::open_regular(path).map_err(|what| invalid(name, what))?;
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > most {
        return Err(invalid(name, format!("has more than {most} bytes")));
    }
    Ok(bytes)
}

fn running(name: &str, how: &str) -> Error {
    refused(Code::SourceRunning, name, format!("says that the VM runs ({how}): shut it down first"))
}

/// Refuses a VM of Tart that runs, or has its disk in layers. One that is suspended passes.
pub(super) fn not_run_by_tart(dir: &Path) -> Result<()> {
    let Some(obstacle) = source_state::of_tart(dir) else { return Ok(()) };
    let (file, what) = obstacle.describe();
    match obstacle {
        SourceObstacle::Suspended => Ok(()),
        SourceObstacle::Running { .. } => Err(refused(Code::SourceRunning, file, what)),
        SourceObstacle::Layered | SourceObstacle::Unreadable(_) => Err(invalid(file, what)),
    }
}

/// Refuses a directory in which a `*.pid` file names a running process.
pub(super) fn no_live_pid(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|error| invalid("path", format!("cannot be read: {}", error.kind())))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".pid") || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let text = read(&entry.path(), &name, LARGEST_PID_FILE)?;
        let pid = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok()).and_then(Pid::from_raw);
        // A process that may not be signalled also exists.
        if let Some(pid) = pid
            && !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
        {
            let how = format!("process {} is alive; remove the file if it is another one's", pid.as_raw_nonzero());
            return Err(running(&name, &how));
        }
    }
    Ok(())
}

/// Lists the files of the directory that are not imported.
pub(super) fn name_the_rest(dir: &Path, known: &[&str], notices: &mut Notices) {
    let mut rest: Vec<String> = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| !known.contains(&name.as_str()))
        .collect();
    rest.sort();
    for name in rest {
        notices.add(name, "does not go along: the template has no place for it");
    }
}
