//! Whether the process that started this one is still there.
//!
//! A scheduler that is killed leaves the adapters that it started running. When it is back, it deletes what it knows of; an
//! adapter of before that made a vm after that would leave a vm that no one asks for again. So an adapter's work ends with the
//! scheduler that started it.

use rustix::process::{Pid, getppid};

#[derive(Clone, Copy, Debug)]
pub(super) struct ParentProcess {
    pid: Option<Pid>,
}

impl ParentProcess {
    pub fn now() -> Self {
        Self { pid: getppid() }
    }

    /// An orphan belongs to another process. The scheduler itself may be process 1, as in a container: then nothing outlives it.
    pub fn has_ended(self) -> bool {
        getppid() != self.pid
    }
}
