//! The part of the bundle for the readiness check that the guest makes: settings of `ready.sh`.

use crate::domain::ready_check::{GuestProbe, HttpProbe, ReadyCheck};

/// The exit code of `boot.sh` for a check that did not succeed in time. Its last line is what was seen last.
pub const EXIT_NOT_READY: u32 = 4;

pub struct ReadyKit {
    pub check: ReadyCheck,
    /// How long the check is repeated.
    pub seconds: u32,
}

impl ReadyKit {
    /// `None`: the guest does not check itself.
    pub(super) fn settings(&self) -> Option<Vec<(&'static str, String)>> {
        let mut settings = vec![
            ("MAYFLY_READY_INTERVAL", self.check.interval_seconds().to_string()),
            ("MAYFLY_READY_SECONDS", self.seconds.to_string()),
        ];
        match self.check.probe()? {
            GuestProbe::Http(HttpProbe { port, path, expect, version_path, state_path }) => settings.extend([
                ("MAYFLY_READY", "http".to_owned()),
                ("MAYFLY_READY_PORT", port.to_string()),
                ("MAYFLY_READY_PATH", path.to_owned()),
                ("MAYFLY_READY_EXPECT", expect.to_owned()),
                ("MAYFLY_READY_VERSION_PATH", version_path.to_owned()),
                ("MAYFLY_READY_STATE_PATH", state_path.to_owned()),
            ]),
            GuestProbe::Tcp { port } => {
                settings.extend([("MAYFLY_READY", "tcp".to_owned()), ("MAYFLY_READY_PORT", port.to_string())]);
            }
            GuestProbe::Exec { command } => {
                settings.extend([("MAYFLY_READY", "exec".to_owned()), ("MAYFLY_READY_COMMAND", command.to_owned())])
            }
        }
        Some(settings)
    }
}
