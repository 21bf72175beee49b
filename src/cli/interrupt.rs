//! Signals that end a command.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::CommandFailure;

/// Ctrl-C (SIGINT) and SIGTERM. From `listen` on, they do not end the process.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    pub fn listen() -> Result<Self, CommandFailure> {
        let listen =
            |kind| signal(kind).map_err(|error| CommandFailure::Other(format!("cannot listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    /// Waits for the next one. Its value is the exit code that shells expect: 128 and the signal's number.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }
}

/// The work's result, or the failure that a signal ended it. `goes_on` says then what happens without this command, and what
/// to do about it.
pub(super) async fn or<T>(
    goes_on: impl Into<String>,
    work: impl Future<Output = Result<T, CommandFailure>>,
) -> Result<T, CommandFailure> {
    let mut interrupts = Interrupts::listen()?;
    tokio::select! {
        done = work => done,
        code = interrupts.next() => Err(CommandFailure::Interrupted { code, goes_on: goes_on.into() }),
    }
}
