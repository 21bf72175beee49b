//! Whether the process that started this one is still there.
//!
//! A GARM that is killed leaves its providers running. When it is back, it deletes by name what it was creating; a provider of
//! before that made its vm after that would leave a vm that no one asks for again. So a creation ends with its GARM.

use rustix::process::{Pid, getppid};

#[derive(Clone, Copy, Debug)]
pub(super) struct ParentProcess {
    pid: Option<Pid>,
}

impl ParentProcess {
    pub fn now() -> Self {
        Self { pid: getppid() }
    }

    /// An orphan belongs to another process. GARM itself may be process 1, as in a container: then nothing outlives it.
    pub fn has_ended(self) -> bool {
        getppid() != self.pid
    }
}
