//! How the failures of files and programs become a driver's: who is at fault, and whether trying again may help.

use std::io;

use super::{DriverError, ErrorKind, command::CommandError};
use crate::domain::Code;

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

/// A program that could not be followed to its end.
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

/// A directory or a file that may be gone already.
pub fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
