//! Why a configuration is refused.

use std::fmt;

/// One setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingProblem {
    /// Where it stands: a file and line, a variable, an option.
    pub place: String,
    pub message: String,
}

/// Why there is no configuration to start with. Every message says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("no data directory: HOME is not set; give one with --data-dir or MAYFLY_DATA_DIR")]
    NoHome,
    #[error("cannot create the data directory {path}: {cause}; make it, or name another with --data-dir")]
    CannotCreate { path: String, cause: std::io::Error },
    #[error("cannot use the data directory {path}: {cause}; name another with --data-dir")]
    CannotUse { path: String, cause: std::io::Error },
    #[error("the data directory {path} is not a directory; move it away, or name another with --data-dir")]
    NotADirectory { path: String },
    #[error(
        "the data directory {path} belongs to user {owner} and Mayfly runs as user {me}; start it as its owner, or name \
         another with --data-dir"
    )]
    NotOurs { path: String, owner: u32, me: u32 },
    #[error("the data directory {path} is open to other users (mode {mode:04o}); close it with: chmod 700 {path}")]
    Open { path: String, mode: u32 },
    #[error(
        "the data directory {path} cannot be written to: {cause}; give its owner write access, or name another with --data-dir"
    )]
    NotWritable { path: String, cause: std::io::Error },
    #[error("cannot read {path}: {cause}; mend it, or move it away to start with defaults")]
    Unreadable { path: String, cause: std::io::Error },
    #[error("{path}:{line}:{column}: not TOML: {message}")]
    Syntax { path: String, line: usize, column: usize, message: String },
    #[error("{}", Lines(.0))]
    Settings(Vec<SettingProblem>),
}

struct Lines<'a>(&'a [SettingProblem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{}: {}", problem.place, problem.message)?;
        }
        Ok(())
    }
}
