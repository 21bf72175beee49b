//! The lock by which a process of Mayfly's own is found: the kernel tells others which process holds it.

use std::{fs::File, io, path::Path};

use rustix::fs::{FlockOperation, fcntl_lock};

/// Creates the file if needed, and holds its lock while the returned file is open. `WouldBlock`: another process holds it.
pub fn take_lock(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {
            file.set_len(0)?;
            Ok(file)
        }
        // Systems differ in the error.
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::ACCESS) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}
