//! The kernel's limit of macOS guests, and the framework's locks on a VM's files: files that are locked while the process
//! lives.

use std::{fs::File, path::Path};

use rustix::fs::{FlockOperation, flock};

use crate::{
    control::{Control, state},
    words,
};

/// A slot, or the framework's error.
pub fn take_slot(home: &Path, control: &Control) -> Result<File, String> {
    for n in 0..control.limit.saturating_sub(control.foreign_kernel_slots) {
        if let Ok(slot) = File::create(state(home).join(format!("slot-{n}")))
            && flock(&slot, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            return Ok(slot);
        }
    }
    Err(limit())
}

pub fn limit() -> String {
    let reached = "The maximum supported number of active virtual machines has been reached.";
    words::framework_error(6, reached, "The number of virtual machines exceeds the limit.", reached)
}

/// The framework locks the auxiliary storage of a VM that runs.
pub fn lock_aux(path: &Path) -> Result<File, String> {
    let reason = "Failed to lock auxiliary storage.";
    let file = File::open(path).map_err(|_| words::invalid(reason))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| words::invalid(reason))?;
    Ok(file)
}
