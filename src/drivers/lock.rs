//! Asks the kernel which process holds a record lock on a file. The lock is never taken: on macOS, `flock` and record
//! locks exclude one another. If Mayfly held a `flock`, macOS would report -1 as the holder's pid to other programs,
//! which send signals to the holder, and a signal to pid -1 goes to every process of the user.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use rustix::process::{Flock, FlockType, fcntl_getlk};

/// The holder of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockHolder {
    /// No process, or the file does not exist.
    Free,
    Process(i32),
    /// The kernel does not report it: another kind of lock, or its owner is not visible.
    Unknown,
}

/// Asks with a read lock, which conflicts only with a write lock. The lock belongs to the file and not to the path,
/// so a file that replaced another one has no holder.
pub fn holder(path: &Path) -> io::Result<LockHolder> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LockHolder::Free),
        Err(error) => return Err(error),
    };
    // In a debug build, rustix panics at the pid -1 that stands for another kind of lock.
    let asked = catch_unwind(AssertUnwindSafe(|| fcntl_getlk(&file, &Flock::from(FlockType::ReadLock))));
    let Ok(asked) = asked else { return Ok(LockHolder::Unknown) };
    Ok(match asked?.map(|lock| lock.pid.map(|pid| pid.as_raw_nonzero().get())) {
        None => LockHolder::Free,
        Some(Some(pid)) if pid > 0 => LockHolder::Process(pid),
        Some(_) => LockHolder::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, fcntl_lock};

    use super::*;

    #[test]
    fn the_kernel_reports_the_holder_of_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        assert_eq!(holder(&config).unwrap(), LockHolder::Free);
        std::fs::write(&config, "{}").unwrap();
        assert_eq!(holder(&config).unwrap(), LockHolder::Free);
        // A process's own record locks do not conflict, so another process is needed; and `flock` is another kind of
        // lock.
        let file = File::open(&config).unwrap();
        file.lock().unwrap();
        #[cfg(target_os = "linux")]
        assert_eq!(holder(&config).unwrap(), LockHolder::Free);
        drop(file);
        let file = File::options().write(true).open(&config).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(holder(&config).unwrap(), LockHolder::Free);
        // A dangling path has no answer.
        assert!(holder(&config.join("below a file")).is_err());
    }
}
