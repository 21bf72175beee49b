//! Converts failures of files and programs to driver errors: their kind, and whether a retry may help.

use std::io;

use super::{DriverError, ErrorKind};
use crate::{domain::Code, platform::process::CommandError};

/// Limit of a program's output in a message, in bytes.
const SHOWN: usize = 200;

pub fn io(error: io::Error, code: Code, what: &str) -> DriverError {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull
        | io::ErrorKind::QuotaExceeded
        | io::ErrorKind::ReadOnlyFilesystem
        | io::ErrorKind::PermissionDenied => ErrorKind::Host,
        _ => ErrorKind::Retry,
    };
    DriverError::new(kind, code, format!("{what}: {error}")).source(error)
}

/// An observation failed, so nothing is known. Whatever the reason, this says nothing about the vm, and is no reason
/// for the host to give it up: the observation is repeated.
pub fn unseen(error: io::Error, what: &str) -> DriverError {
    DriverError::new(ErrorKind::Retry, Code::HostUnavailable, format!("{what} cannot be looked at: {error}"))
        .source(error)
}

/// Whether there is an entry at this path, which may be a dangling link.
pub fn exists(path: &std::path::Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// A program whose end could not be observed.
pub fn command(error: CommandError, code: Code) -> DriverError {
    match &error {
        CommandError::Missing { .. } | CommandError::Spawn { .. } => {
            DriverError::new(ErrorKind::Host, Code::HostUnavailable, error.to_string())
        }
        CommandError::Deadline { stderr_tail, .. } => {
            DriverError::new(ErrorKind::Retry, code, error.to_string()).tail(stderr_tail.clone())
        }
        CommandError::Flood { .. } | CommandError::Io { .. } => {
            DriverError::new(ErrorKind::Retry, code, error.to_string())
        }
    }
    .source(error)
}

/// The beginning of a text, quoted and on one line.
pub fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    format!("{text:?}{}", if bytes.len() > SHOWN { "…" } else { "" })
}
