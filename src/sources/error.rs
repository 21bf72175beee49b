//! Errors of CI servers, as far as callers react to them in the same way.

use jiff::Timestamp;

use crate::domain::SourceKind;

/// What a caller can do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceErrorKind {
    /// Found locally, before any request was sent.
    Settings,
    /// `sent`: the request may have been carried out all the same.
    Unavailable { sent: bool },
    /// The answer did not come from the server itself, or cannot be used.
    Unparsable,
    /// The server refuses requests until then.
    RateLimited { until: Timestamp },
    /// The runner has a job. It must not be removed now, and neither may its vm.
    RunnerBusy,
    /// Used by another runner, or by an earlier request whose answer was lost.
    NameTaken,
    /// The server answered, and a repetition changes nothing.
    Refused,
}

/// Never contains a token, a key, a runner's registration or a URL with a query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct SourceError {
    pub system: SourceKind,
    pub kind: SourceErrorKind,
    /// One line.
    pub detail: String,
}

impl SourceError {
    pub fn new(system: SourceKind, kind: SourceErrorKind, detail: impl Into<String>) -> Self {
        Self { system, kind, detail: detail.into() }
    }

    /// Whether the request may have been carried out. Then a repetition with the same name may find it done.
    pub fn maybe_done(&self) -> bool {
        matches!(self.kind, SourceErrorKind::Unavailable { sent: true } | SourceErrorKind::Unparsable)
    }

    /// Whether the same request may succeed later without any change. An unparsable answer came from something in front
    /// of the server, such as a proxy, and may be temporary.
    pub fn passes(&self) -> bool {
        match self.kind {
            SourceErrorKind::Unavailable { .. }
            | SourceErrorKind::Unparsable
            | SourceErrorKind::RateLimited { .. }
            | SourceErrorKind::RunnerBusy => true,
            SourceErrorKind::Settings | SourceErrorKind::NameTaken | SourceErrorKind::Refused => false,
        }
    }
}
