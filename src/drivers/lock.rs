//! Who holds a record lock on a file, asked of the kernel. The lock is never taken: on macOS, `flock` and record locks exclude one
//! another, and for a `flock` the kernel names the holder -1, to which programs then send their signals, that is to every process
//! of the user.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use rustix::process::{Flock, FlockType, fcntl_getlk};

/// Who holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockHolder {
    /// Nothing does, or there is no such file.
    Nobody,
    Process(i32),
    /// The kernel does not say: it is a lock of another kind, or its owner is out of our sight.
    Unknown,
}

/// Asks with a read lock, which only a write lock is in the way of. The lock is the file's and not the path's, so a file that
/// was put in the place of another one has no holder.
pub fn holder(path: &Path) -> io::Result<LockHolder> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(LockHolder::Nobody),
        Err(error) => return Err(error),
    };
    // In a debug build, rustix panics at the pid -1 that stands for a lock of another kind.
    let asked = catch_unwind(AssertUnwindSafe(|| fcntl_getlk(&file, &Flock::from(FlockType::ReadLock))));
    let Ok(asked) = asked else { return Ok(LockHolder::Unknown) };
    Ok(match asked?.map(|lock| lock.pid.map(|pid| pid.as_raw_nonzero().get())) {
        None => LockHolder::Nobody,
        Some(Some(pid)) if pid > 0 => LockHolder::Process(pid),
        Some(_) => LockHolder::Unknown,
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FlockOperation, fcntl_lock};

    use super::*;

    #[test]
    fn a_locks_holder_is_asked_of_the_kernel() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.json");
        assert_eq!(holder(&config).unwrap(), LockHolder::Nobody);
        std::fs::write(&config, "{}").unwrap();
        assert_eq!(holder(&config).unwrap(), LockHolder::Nobody);
        // One's own record locks are in nobody's way, so another process is needed, and `flock` is a lock of another kind.
        let file = File::open(&config).unwrap();
        file.lock().unwrap();
        #[cfg(target_os = "linux")]
        assert_eq!(holder(&config).unwrap(), LockHolder::Nobody);
        drop(file);
        let file = File::options().write(true).open(&config).unwrap();
        fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
        assert_eq!(holder(&config).unwrap(), LockHolder::Nobody);
        // Of a path that leads nowhere there is no answer.
        assert!(holder(&config.join("below a file")).is_err());
    }
}
