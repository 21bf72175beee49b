//! Failures of a vm's step: their kinds, and the event that each of them causes. `vms::drive` applies the event.

use std::time::Duration;

use crate::{
    domain::{Code, Error, Event, Fault, State, Vm},
    drivers::{DriverError, ErrorKind},
    guest,
    sources::SourceError,
    store::StoreError,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The same step may succeed shortly.
    Retry,
    /// This clone is lost; a fresh clone may work.
    Attempt,
    /// No further attempt can help this vm.
    Permanent,
    /// The cause is the host, not this vm.
    Host,
}

#[derive(Debug)]
pub(super) struct Failure {
    pub kind: FailureKind,
    pub code: Code,
    /// One line, without secrets.
    pub detail: String,
    /// For the log only.
    pub tail: Option<String>,
    /// The pause that a server has asked for before the step is retried.
    pub retry_after: Option<Duration>,
}

impl Failure {
    pub fn new(kind: FailureKind, code: Code, detail: impl Into<String>) -> Self {
        Self { kind, code, detail: detail.into(), tail: None, retry_after: None }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let kind = match error.kind {
            ErrorKind::Retry => FailureKind::Retry,
            ErrorKind::Instance => FailureKind::Attempt,
            ErrorKind::Permanent => FailureKind::Permanent,
            ErrorKind::Host => FailureKind::Host,
        };
        Failure { kind, code: error.code, detail: error.summary, tail: error.tail, retry_after: None }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // An internal error (a file or a row that cannot be read) says nothing about the vm, so the step is retried.
        let passes = error.code.retryable() || error.code == Code::Internal;
        let kind = if passes { FailureKind::Retry } else { FailureKind::Permanent };
        let tail = error.cause.as_ref().map(ToString::to_string);
        Failure { kind, code: error.code, detail: error.detail, tail, retry_after: None }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Error::from(error).into()
    }
}

impl From<guest::agent::Error> for Failure {
    fn from(error: guest::agent::Error) -> Self {
        use guest::agent::Error;
        let kind = match &error {
            Error::Retry(_) => FailureKind::Retry,
            Error::Unusable(_) | Error::Failed { .. } => FailureKind::Attempt,
        };
        let tail = match &error {
            Error::Failed { tail, .. } => Some(tail.clone()),
            Error::Retry(_) | Error::Unusable(_) => None,
        };
        Failure { kind, code: error.code(), detail: with_words(&error, tail.as_deref()), tail, retry_after: None }
    }
}

impl From<guest::SshError> for Failure {
    fn from(error: guest::SshError) -> Self {
        let kind = match &error {
            // A guest that creates its users while it boots refuses logins at first. The budget limits how long this
            // is retried.
            guest::SshError::Retry(_) | guest::SshError::LoginRefused(_) => FailureKind::Retry,
            guest::SshError::HostKeyChanged(_) | guest::SshError::Failed { .. } => FailureKind::Attempt,
        };
        let tail = match &error {
            guest::SshError::Failed { tail, .. } => Some(tail.clone()),
            _ => None,
        };
        Failure { kind, code: error.code(), detail: with_words(&error, tail.as_deref()), tail, retry_after: None }
    }
}

impl From<&SourceError> for Failure {
    fn from(error: &SourceError) -> Self {
        if error.passes() {
            Failure::new(FailureKind::Retry, error.system.unavailable(), error.to_string())
        } else {
            Failure::new(FailureKind::Permanent, error.system.refused(), error.to_string())
        }
    }
}

/// The error with the last line of the guest's output, which usually names the cause.
fn with_words(error: &dyn std::fmt::Display, output: Option<&str>) -> String {
    match output.and_then(guest::last_line) {
        Some(words) => format!("{error}; it said: {words}"),
        None => error.to_string(),
    }
}

/// The event for a failed step, and whether the same step is retried after a pause.
pub(super) fn failed(vm: &Vm, kind: FailureKind, fault: Fault) -> (Event, bool) {
    let coming_up = matches!(vm.state, State::Cloning | State::Booting | State::Configuring);
    match kind {
        // The template could not be pulled. A queued vm has no instance, so only the vm itself is given up.
        FailureKind::Permanent if vm.state == State::Queued => (Event::GivenUp { fault }, false),
        // Cleanup is retried until it succeeds: giving up would leak the instance.
        _ if !coming_up => (Event::StepFailed { fault }, true),
        FailureKind::Retry => (Event::StepFailed { fault }, true),
        FailureKind::Attempt => (vm.attempt_failed(fault), false),
        FailureKind::Permanent => (Event::GivenUp { fault }, false),
        FailureKind::Host => (Event::HostRefused { fault }, false),
    }
}
