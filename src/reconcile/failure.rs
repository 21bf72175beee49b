//! Why a step did not come to its end, and what follows from it for the vm.

use crate::{
    domain::{Code, Error, Event, Fault, ResolvedSpec, State, Vm},
    drivers::{DriverError, ErrorKind},
    guest,
    sources::github::GitHubError,
    store::StoreError,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// The same step may work in a moment.
    Retry,
    /// This clone is lost; a fresh one may work.
    Attempt,
    /// Nothing will help this vm.
    Permanent,
    /// The host is at fault, not this vm.
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
}

impl Failure {
    pub fn new(kind: FailureKind, code: Code, detail: impl Into<String>) -> Self {
        Self { kind, code, detail: detail.into(), tail: None }
    }
}

impl From<DriverError> for Failure {
    fn from(error: DriverError) -> Self {
        let kind = match error.kind {
            ErrorKind::Retry => FailureKind::Retry,
            ErrorKind::Permanent => FailureKind::Permanent,
            ErrorKind::Host => FailureKind::Host,
        };
        Failure { kind, code: error.code, detail: error.summary, tail: error.tail }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        // Of something that went wrong in here (a file or a row that could not be read) nothing follows for the vm.
        let passes = error.code.retryable() || error.code == Code::Internal;
        let kind = if passes { FailureKind::Retry } else { FailureKind::Permanent };
        let tail = error.cause.as_ref().map(ToString::to_string);
        Failure { kind, code: error.code, detail: error.detail, tail }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Error::from(error).into()
    }
}

/// What a vm that holds a slot is made of.
pub(super) fn spec_of(vm: &Vm) -> Result<&ResolvedSpec, Failure> {
    let unknown =
        || Failure::new(FailureKind::Permanent, Code::Internal, "the vm got a slot before its template was here");
    vm.spec.resolved().ok_or_else(unknown)
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
        Failure { kind, code: error.code(), detail: error.to_string(), tail }
    }
}

impl From<guest::SshError> for Failure {
    fn from(error: guest::SshError) -> Self {
        let kind = match &error {
            // A guest that makes its users while it boots refuses at first: the budget decides how long that is believed.
            guest::SshError::Retry(_) | guest::SshError::LoginRefused(_) => FailureKind::Retry,
            guest::SshError::HostKeyChanged(_) | guest::SshError::Failed { .. } => FailureKind::Attempt,
        };
        let tail = match &error {
            guest::SshError::Failed { tail, .. } => Some(tail.clone()),
            _ => None,
        };
        Failure { kind, code: error.code(), detail: error.to_string(), tail }
    }
}

impl From<&GitHubError> for Failure {
    fn from(error: &GitHubError) -> Self {
        // What came in the place of an answer was not GitHub's, and may be gone in a moment.
        if error.passes() || matches!(error, GitHubError::Unparsable { .. }) {
            Failure::new(FailureKind::Retry, Code::GitHubUnavailable, error.to_string())
        } else {
            Failure::new(FailureKind::Permanent, Code::GitHubRefused, error.to_string())
        }
    }
}

/// What a failed step means, and whether the same step is tried again after a rest.
pub(super) fn failed(vm: &Vm, kind: FailureKind, fault: Fault) -> (Event, bool) {
    let coming_up = matches!(vm.state, State::Cloning | State::Booting | State::Configuring);
    match kind {
        // Its template could not be had. It has no instance, so there is nothing but the vm itself to be given up.
        FailureKind::Permanent if vm.state == State::Queued => (Event::GivenUp { fault }, false),
        // Cleaning up is tried until it works: giving up would leak what is to be cleaned.
        _ if !coming_up => (Event::StepFailed { fault }, true),
        FailureKind::Retry => (Event::StepFailed { fault }, true),
        FailureKind::Attempt => (attempt_failed(vm, fault), false),
        FailureKind::Permanent => (Event::GivenUp { fault }, false),
        FailureKind::Host => (Event::HostRefused { fault }, false),
    }
}

pub(super) fn attempt_failed(vm: &Vm, fault: Fault) -> Event {
    if vm.has_attempts_left() { Event::AttemptFailed { fault } } else { Event::GivenUp { fault } }
}
