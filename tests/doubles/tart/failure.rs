//! Errors in the shapes that Tart gives them: which one it is decides between a prefix, a usage text and the exit code.

use std::process::ExitCode;

use crate::output;

#[derive(Debug)]
pub enum Failure {
    /// An error of Tart's own, thrown while a command runs: the message alone.
    Runtime { text: String, exit: u8 },
    /// Any other error, or one of Tart's own thrown while arguments are validated: prefixed, exit 1.
    Other(String),
    /// Wrong usage: prefixed, with the usage of a subcommand or, after parsing, of bare `tart`. Exit 64.
    Usage { text: String, command: Option<&'static str> },
    /// The double itself cannot go on, so no test may take it for Tart's word.
    Double(String),
}

impl Failure {
    pub fn runtime(text: impl Into<String>) -> Failure {
        Failure::Runtime { text: text.into(), exit: 1 }
    }

    pub fn missing(name: &str) -> Failure {
        Failure::Runtime { text: format!("the specified VM \"{name}\" does not exist"), exit: 2 }
    }

    pub fn not_running(name: &str) -> Failure {
        Failure::Runtime { text: format!("VM \"{name}\" is not running"), exit: 2 }
    }

    pub fn usage(text: impl Into<String>) -> Failure {
        Failure::Usage { text: text.into(), command: None }
    }

    pub fn io(what: &str, error: &std::io::Error) -> Failure {
        Failure::Other(format!("{what}: {error}"))
    }

    pub fn not_simulated(command: &str) -> Failure {
        Failure::Double(format!("the double does not play this: tart {command}"))
    }

    /// As `run` reports what it finds before it runs.
    pub fn in_validation(self) -> Failure {
        match self {
            Failure::Runtime { text, .. } => Failure::Other(text),
            other => other,
        }
    }

    pub fn report(&self) -> ExitCode {
        match self {
            Failure::Runtime { text, exit } => {
                output::error(text);
                ExitCode::from(*exit)
            }
            Failure::Other(text) => {
                output::error(&format!("Error: {text}"));
                ExitCode::from(1)
            }
            Failure::Usage { text, command } => {
                let (usage, see) = match command {
                    Some(command) => (crate::cli::usage(command), format!("tart {command}")),
                    None => (crate::cli::usage(""), "tart".to_owned()),
                };
                output::error(&format!("Error: {text}\nUsage: {usage}\n  See '{see} --help' for more information."));
                ExitCode::from(64)
            }
            Failure::Double(text) => {
                output::error(text);
                ExitCode::from(70)
            }
        }
    }
}
