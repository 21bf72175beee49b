//! Keeps logs that the guest can make grow below their limits, while the guest runs.
//!
//! The hypervisor writes them itself, and has no limits of its own. The gateway runs as long as the hypervisor, also while
//! the service does not.

use std::{convert::Infallible, time::Duration};

use crate::{
    domain::gateway::LogLimit,
    platform::files::{self, KeptParts},
};

/// A guest writes some ten MiB to its console in a second, so a log exceeds its limit by a few MiB at most.
const EVERY: Duration = Duration::from_millis(200);

pub(super) async fn keep(limits: Vec<LogLimit>) -> Infallible {
    let mut noted = vec![false; limits.len()];
    loop {
        tokio::time::sleep(EVERY).await;
        for (log, noted) in limits.iter().zip(&mut noted) {
            let kept = KeptParts { beginning: log.keep_beginning, end: log.keep_end };
            match files::cut_above(&log.path, log.bytes, kept) {
                Ok(false) => {}
                // Once, because this line is in a log with a limit, too.
                Ok(true) if *noted => {}
                Ok(true) => {
                    *noted = true;
                    let (file, limit) = (log.path.display(), log.bytes);
                    tracing::warn!(%file, limit, "the guest made a log exceed its limit; its content was cut, and will be again");
                }
                Err(error) if *noted => tracing::debug!(%error, file = %log.path.display(), "cannot cut a log"),
                Err(error) => {
                    *noted = true;
                    tracing::warn!(%error, file = %log.path.display(), "cannot cut a log that exceeds its limit");
                }
            }
        }
    }
}
