//! What a session in a guest is given and what it returns, whichever way it goes.

use bytes::Bytes;

use crate::domain::Code;

/// The caller's terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// As in the environment variable `TERM`.
    pub term: String,
    pub columns: u32,
    pub rows: u32,
}

/// How what ran has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionExit {
    Code(u32),
    /// Its name without `SIG`.
    Signal(String),
    /// The guest did not say.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionOutput {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The last one.
    Exited(SessionExit),
}

/// Why a session could not be opened, or broke off. One line without secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct SessionError {
    pub code: Code,
    pub detail: String,
}
