//! Detects that QEMU has stopped its guest and stays alive.
//!
//! QEMU reports this as an event on the `live` socket. What happened before the listener connected is in the guest's
//! state, which is queried first, and then again every few seconds, because an event may be lost with its connection.
//! A guest that an older Mayfly started has no such socket; only its state is queried.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    instance::{PATIENCE, recorded_cause},
    paths::QemuPaths,
    qmp::{QmpClient, QmpError},
};
use crate::{
    domain::{event::GoneCause, gateway::LogLimit},
    platform::{
        clock,
        files::{self, KeptParts},
    },
};

/// Interval of state queries while no event arrives.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// A QEMU whose guest has shut down ends by itself well within this time, unless it was told not to.
const LEAVE: Duration = Duration::from_secs(5);
/// Events after which the guest's state may have changed.
const TELLING: &[&str] = &["STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED", "WATCHDOG", "BLOCK_IO_ERROR", "SUSPEND"];

/// Meaning of a QEMU state for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    UnderWay,
    /// It shut down, and QEMU is about to end.
    Leaving,
    Stopped(GoneCause),
}

/// An unknown state of a later QEMU counts as running: the end of the process ends the guest for certain.
pub fn condition(run_state: &str) -> Condition {
    match run_state {
        "shutdown" => Condition::Leaving,
        "internal-error" => Condition::Stopped(GoneCause::HypervisorError),
        "guest-panicked" => Condition::Stopped(GoneCause::GuestPanic),
        "watchdog" => Condition::Stopped(GoneCause::GuestWatchdog),
        // QEMU is configured to stop a guest only for a full disk.
        "io-error" => Condition::Stopped(GoneCause::HostDiskFull),
        // Mayfly never pauses a guest, attaches a debugger or migrates a guest.
        "paused" | "debug" | "postmigrate" => Condition::Stopped(GoneCause::HostPause),
        // A guest suspends itself, and may have set a wake-up alarm; the other states are temporary.
        _ => Condition::UnderWay,
    }
}

/// Returns the cause once QEMU has stopped its guest. Never returns while the guest runs, or if QEMU does not answer.
pub async fn stopped(paths: &QemuPaths, console_limit: u64) -> GoneCause {
    let mut leaving: Option<Instant> = None;
    loop {
        let asked = match QmpClient::connect(&paths.live(), PATIENCE).await {
            Ok(mut client) => follow(&mut client, paths, console_limit, &mut leaving).await.map(Some),
            // Another listener is connected, or the socket does not exist.
            Err(_) => ask(paths, &mut leaving).await,
        };
        match asked {
            Ok(Some(cause)) => return cause,
            Ok(None) => {}
            Err(error) => {
                tracing::debug!(%error, dir = %paths.dir.display(), "cannot query the guest's state")
            }
        }
        keep_bounded(paths, console_limit);
        sleep(if leaving.is_some() { LEAVE } else { ASK_EVERY }).await;
    }
}

async fn ask(paths: &QemuPaths, leaving: &mut Option<Instant>) -> Result<Option<GoneCause>, QmpError> {
    let state = QmpClient::connect(&paths.qmp(), PATIENCE).await?.run_state(PATIENCE).await?;
    Ok(judge(&state, paths, leaving))
}

/// Stays connected until the guest is stopped.
async fn follow<S>(
    client: &mut QmpClient<S>,
    paths: &QemuPaths,
    console_limit: u64,
    leaving: &mut Option<Instant>,
) -> Result<GoneCause, QmpError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    loop {
        let state = client.run_state(PATIENCE).await?;
        if let Some(cause) = judge(&state, paths, leaving) {
            return Ok(cause);
        }
        let ask_at = clock::monotonic() + ASK_EVERY;
        loop {
            let patience = ask_at.saturating_duration_since(clock::monotonic());
            match client.event(patience).await? {
                Some(event) if TELLING.contains(&event.name.as_str()) => break,
                Some(_) => {}
                None => break,
            }
        }
        keep_bounded(paths, console_limit);
    }
}

fn judge(state: &str, paths: &QemuPaths, leaving: &mut Option<Instant>) -> Option<GoneCause> {
    match condition(state) {
        Condition::UnderWay => {
            *leaving = None;
            None
        }
        Condition::Stopped(cause) => Some(cause),
        Condition::Leaving => {
            let since = *leaving.get_or_insert_with(clock::monotonic);
            if clock::elapsed(since) < LEAVE {
                return None;
            }
            // A cause that cannot be read now is read at the next check.
            recorded_cause(paths).ok().map(|cause| cause.unwrap_or(GoneCause::GuestPowerOff))
        }
    }
}

/// Cuts logs that exceed their limits. The gateway does it more often; this is for guests without one, and for the time
/// until a new gateway takes the place of one that ended.
pub fn keep_bounded(paths: &QemuPaths, console_limit: u64) {
    for LogLimit { path, bytes, keep_beginning, keep_end } in paths.log_limits(console_limit) {
        if let Err(error) = files::cut_above(&path, bytes, KeptParts { beginning: keep_beginning, end: keep_end }) {
            tracing::warn!(%error, file = %path.display(), "cannot cut a log that exceeds its limit");
        }
    }
}

/// The first line of QEMU's output that is not a warning, cut to a limit.
pub fn words(paths: &QemuPaths) -> Option<String> {
    use std::io::Read;
    let mut bytes = Vec::new();
    std::fs::File::open(paths.errors()).ok()?.take(4096).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines().map(|line| line.trim_matches(['\0', ' ', '\r']));
    let line = lines.find(|line| !line.is_empty() && !line.contains("warning: "))?;
    Some(line.chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_of_qemu_is_one_of_three() {
        // All states of QEMU 7.2 to 10.
        for (state, expected) in [
            ("running", Condition::UnderWay),
            ("prelaunch", Condition::UnderWay),
            ("inmigrate", Condition::UnderWay),
            ("restore-vm", Condition::UnderWay),
            ("save-vm", Condition::UnderWay),
            ("finish-migrate", Condition::UnderWay),
            ("colo", Condition::UnderWay),
            ("suspended", Condition::UnderWay),
            ("shutdown", Condition::Leaving),
            ("debug", Condition::Stopped(GoneCause::HostPause)),
            ("paused", Condition::Stopped(GoneCause::HostPause)),
            ("postmigrate", Condition::Stopped(GoneCause::HostPause)),
            ("internal-error", Condition::Stopped(GoneCause::HypervisorError)),
            ("io-error", Condition::Stopped(GoneCause::HostDiskFull)),
            ("watchdog", Condition::Stopped(GoneCause::GuestWatchdog)),
            ("guest-panicked", Condition::Stopped(GoneCause::GuestPanic)),
        ] {
            assert_eq!(condition(state), expected, "{state}");
        }
    }

    #[test]
    fn what_grows_at_the_guests_will_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let paths = QemuPaths { dir: dir.path().to_owned() };
        std::fs::write(paths.errors(), vec![b'x'; 2 << 20]).unwrap();
        std::fs::write(paths.console(), vec![b'x'; 2 << 20]).unwrap();
        std::fs::write(paths.watch_log(), vec![b'x'; 2 << 20]).unwrap();
        keep_bounded(&paths, 4 << 20);
        let watch = std::fs::metadata(paths.watch_log()).unwrap();
        assert!(std::os::unix::fs::MetadataExt::blocks(&watch) * 512 < 512 << 10);
        assert_eq!(std::fs::metadata(paths.errors()).unwrap().len(), 0);
        assert_eq!(std::fs::metadata(paths.console()).unwrap().len(), 2 << 20);
    }
}
