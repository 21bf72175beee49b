//! The state of a VM whose files are to be copied: only files of a VM that is shut down are a template.

use std::{
    io,
    os::unix::net::UnixStream,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use rustix::process::{Flock, FlockType, fcntl_getlk};

use crate::platform::files;

pub(super) const CONFIG: &str = "config.json";
pub(super) const DISK: &str = "disk.img";
pub(super) const MEMORY: &str = "state.vzvmsave";
const OVERLAY: &str = "overlay.asif";

/// What keeps a directory of Tart's from being a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SourceObstacle {
    /// The file that shows it, and how.
    Running { file: &'static str, how: String },
    /// The memory of a suspended VM belongs to its disk.
    Suspended,
    /// Its disk is a layer on another one.
    Layered,
    /// It is not known.
    Unreadable(String),
}

impl SourceObstacle {
    /// The file that it is about, and what is wrong with it.
    pub fn describe(&self) -> (&'static str, String) {
        match self {
            SourceObstacle::Running { file, how } => {
                (file, format!("says that the VM runs ({how}): shut it down first"))
            }
            SourceObstacle::Suspended => {
                let what = "holds the memory of a suspended VM, which no template can keep: shut the VM down first";
                (MEMORY, what.to_owned())
            }
            SourceObstacle::Layered => {
                let what = "shows that the VM's disk is a layer on another one, which is not supported: push the VM with Tart as \
                            one flat disk, or clone it without `--stacked`";
                (OVERLAY, what.to_owned())
            }
            SourceObstacle::Unreadable(what) => (CONFIG, what.clone()),
        }
    }
}

/// The directory of a VM of Tart. Its process holds a record lock, and answers on its socket.
pub(super) fn of_tart(dir: &Path) -> Option<SourceObstacle> {
    if is_there(&dir.join(OVERLAY)) && !is_there(&dir.join(DISK)) {
        return Some(SourceObstacle::Layered);
    }
    let running = |file, how: String| Some(SourceObstacle::Running { file, how });
    let file = match files::open_regular(&dir.join(CONFIG)) {
        Ok(file) => file,
        Err(what) => return Some(SourceObstacle::Unreadable(what)),
    };
    // The lock is queried and never taken: Tart would take the lock's holder for the VM, and signal it. In a debug
    // build, rustix panics at the pid -1 that stands for another kind of lock.
    match catch_unwind(AssertUnwindSafe(|| fcntl_getlk(&file, &Flock::from(FlockType::ReadLock)))) {
        Ok(Ok(None)) => {}
        Ok(Ok(Some(lock))) => {
            let how = lock.pid.map_or_else(
                || "a process holds its lock".to_owned(),
                |pid| format!("process {} holds its lock", pid.as_raw_nonzero()),
            );
            return running(CONFIG, how);
        }
        Ok(Err(error)) => {
            let error = io::Error::from(error);
            return Some(SourceObstacle::Unreadable(format!("cannot be read: {}", error.kind())));
        }
        Err(_) => return running(CONFIG, "a process holds its lock".to_owned()),
    }
    if UnixStream::connect(dir.join("control.sock")).is_ok() {
        return running("control.sock", "something answers on it".to_owned());
    }
    is_there(&dir.join(MEMORY)).then_some(SourceObstacle::Suspended)
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
