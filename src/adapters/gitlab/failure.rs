//! Why a stage failed, and whose fault it is: GitLab Runner repeats or reports accordingly.

use crate::client;

#[derive(Debug)]
pub(super) enum ExecutorFailure {
    /// The job asks for what there is not: a repetition would fail as well.
    Job(String),
    /// A script of the job ended with this exit code, as a shell has it.
    Script(u8),
    /// Not the job's fault.
    System(String),
}

impl From<client::Error> for ExecutorFailure {
    fn from(error: client::Error) -> Self {
        ExecutorFailure::System(error.into_sentence())
    }
}
