//! Why a call failed. myshoes writes the text to its log; the code decides what it does about the job.

use std::fmt;

use tonic::{Code, Status};

use crate::client;

/// More than any sentence of ours. The host's log shows it in one line.
const LONGEST: usize = 2000;

#[derive(Debug)]
pub(super) struct ShoesFailure {
    code: Code,
    text: String,
}

impl ShoesFailure {
    fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// myshoes drops the job for good.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, text)
    }

    /// Success for myshoes when it deletes.
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NotFound, text)
    }

    pub fn no_capacity(text: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, text)
    }

    pub fn unavailable(text: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, text)
    }

    /// Something that an administrator has to set right. The job is asked for again.
    pub fn settings(text: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, text)
    }

    pub fn cancelled() -> Self {
        Self::new(Code::Cancelled, "the host no longer waits for this call")
    }

    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Code::Internal, text)
    }
}

impl fmt::Display for ShoesFailure {
    /// One line: the host's log shows it as one text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: String = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST).collect();
        f.write_str(&text)
    }
}

impl From<client::Error> for ShoesFailure {
    fn from(error: client::Error) -> Self {
        let code = match &error {
            client::Error::Usage(_) => Code::FailedPrecondition,
            client::Error::NoToken(_) => Code::Unauthenticated,
            client::Error::Unreachable(_) => Code::Unavailable,
            client::Error::Other(_) => Code::Internal,
            client::Error::Problem(problem, _) => match (problem.status, problem.code.as_str()) {
                (_, "queue.full" | "auth.live_vms_exceeded" | "slot.unavailable" | "host.full") => {
                    Code::ResourceExhausted
                }
                (401, _) => Code::Unauthenticated,
                (403, _) => Code::PermissionDenied,
                (500, _) => Code::Internal,
                (502..=504, _) => Code::Unavailable,
                // Never InvalidArgument: what the service refuses is a matter of the settings, and not of the job.
                _ => Code::FailedPrecondition,
            },
        };
        Self::new(code, error.into_sentence())
    }
}

impl From<ShoesFailure> for Status {
    fn from(failure: ShoesFailure) -> Self {
        Status::new(failure.code, failure.to_string())
    }
}
