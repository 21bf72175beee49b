//! Record locks on `config.json`. They belong to the process: a second descriptor of the file, closed, drops them.

use std::{fs::File, path::Path};

use rustix::{
    fs::{FlockOperation, fcntl_lock},
    io::Errno,
    process::{Flock, FlockType, fcntl_getlk},
};

/// Tries to lock the whole file. `Ok(None)`: somebody has it.
pub fn take(config: &Path) -> std::io::Result<Option<File>> {
    let file = File::options().read(true).write(true).open(config)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Who has it. Never ask in the process that may be the answer.
pub fn holder(config: &Path) -> Option<i32> {
    let file = File::options().read(true).write(true).open(config).ok()?;
    let held = fcntl_getlk(&file, &Flock::from(FlockType::ReadLock)).ok()??;
    held.pid.map(|pid| pid.as_raw_nonzero().get())
}
