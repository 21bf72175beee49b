//! Why a command failed, and its exit code.

use super::exit;
use crate::client::{self, ApiProblem};

/// Why a command failed.
#[derive(Debug)]
pub(super) enum CommandFailure {
    /// Invalid arguments.
    Usage(String),
    /// The service answered with a problem.
    Problem(Box<ApiProblem>, Option<String>),
    /// No token was given, and none may be taken from elsewhere.
    NoToken(String),
    /// The service did not answer.
    Unreachable(String),
    TimedOut(String),
    /// `vm exec`, `vm ssh`: the session ended without the end of what ran.
    SessionLost(String),
    Other(String),
    /// A signal ended the command. What it waited for goes on, which this says; it may be empty.
    Interrupted {
        code: u8,
        goes_on: String,
    },
    /// The reader of standard output has closed it.
    OutputClosed,
}

impl From<client::Error> for CommandFailure {
    fn from(error: client::Error) -> Self {
        match error {
            client::Error::Usage(text) => CommandFailure::Usage(text),
            client::Error::Problem(problem, hint) => CommandFailure::Problem(problem, hint),
            client::Error::NoToken(text) => CommandFailure::NoToken(text),
            client::Error::Unreachable(text) => CommandFailure::Unreachable(text),
            client::Error::Other(text) => CommandFailure::Other(text),
        }
    }
}

impl CommandFailure {
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandFailure::Usage(_) => exit::USAGE,
            CommandFailure::Problem(problem, _) => match problem.status {
                401 | 403 => exit::UNAUTHORISED,
                _ => exit::FAILURE,
            },
            CommandFailure::NoToken(_) => exit::UNAUTHORISED,
            CommandFailure::Unreachable(_) => exit::UNREACHABLE,
            CommandFailure::TimedOut(_) => exit::TIMEOUT,
            CommandFailure::SessionLost(_) => exit::SESSION_LOST,
            CommandFailure::Other(_) => exit::FAILURE,
            CommandFailure::Interrupted { code, .. } => *code,
            CommandFailure::OutputClosed => exit::OK,
        }
    }

    /// Whether the same request may succeed in a moment.
    pub fn passes(&self) -> bool {
        match self {
            CommandFailure::Unreachable(_) => true,
            // 502 and 504 are a proxy's way of saying that the service is away.
            CommandFailure::Problem(problem, _) => matches!(problem.status, 502..=504),
            _ => false,
        }
    }
}
