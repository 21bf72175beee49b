//! Logs of guests as files: `<dir>/<vm id>/<source>.log`, each with a size limit, removed with the vm's record.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::log_times;
use crate::{
    domain::VmId,
    platform::{
        Clock,
        files::{self, SpaceGuard},
        tasks::blocking_io,
    },
};

/// Limit of one log of a vm, in bytes.
pub const CAP: u64 = 1024 * 1024;
/// Limit of another program's log for one attempt.
const TAIL: u64 = 64 * 1024;

#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum LogSource {
    /// The guest's serial console.
    Console,
    /// The output of the bootstrap scripts while the guest is provisioned.
    Boot,
    /// The output of the job or setup script.
    Job,
    /// The hypervisor's own messages, and when it was paused.
    Hypervisor,
}

impl LogSource {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone)]
pub struct Logs {
    dir: PathBuf,
    space: SpaceGuard,
    clock: Clock,
}

impl Logs {
    pub fn new(dir: PathBuf) -> Self {
        Self { space: SpaceGuard::new(dir.clone(), 0), dir, clock: Clock::steady() }
    }

    /// When something was written is told by this clock.
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Whether there is space for more is decided by this guard.
    pub fn with_space(self, space: SpaceGuard) -> Self {
        Self { space, ..self }
    }

    fn of(&self, vm: VmId) -> PathBuf {
        self.dir.join(vm.to_string())
    }

    pub fn path(&self, vm: VmId, source: LogSource) -> PathBuf {
        self.of(vm).join(source.as_str()).with_extension("log")
    }

    fn times(&self, vm: VmId, source: LogSource) -> PathBuf {
        self.path(vm, source).with_extension("times")
    }

    /// The byte of the log at which what was written since then begins. Only for logs that the service writes.
    pub async fn offset(&self, vm: VmId, source: LogSource, since: Timestamp) -> io::Result<u64> {
        let times = self.times(vm, source);
        blocking_io(move || log_times::offset(&times, since)).await
    }

    /// Appends up to the limit. The rest is dropped, which the log notes once.
    pub async fn append(&self, vm: VmId, source: LogSource, bytes: Vec<u8>) -> io::Result<()> {
        let (dir, path, space) = (self.of(vm), self.path(vm, source), self.space.clone());
        let (times, now) = (self.times(vm, source), self.clock.now());
        blocking_io(move || {
            files::ensure_private_dir(&dir)?;
            let mut file = files::private().append(true).create(true).open(&path)?;
            let length = file.metadata()?.len();
            let room = CAP.saturating_sub(length);
            if room == 0 {
                return Ok(());
            }
            // Without it, a reader begins earlier.
            if let Err(error) = log_times::note(&times, now, length) {
                tracing::debug!(path = %times.display(), %error, "cannot note when a log was written");
            }
            let fits = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            space.write(fits, || file.write_all(&bytes[..fits]))?;
            if fits < bytes.len() {
                file.write_all(b"\n[mayfly: the log is full, the rest was dropped]\n")?;
            }
            Ok(())
        })
        .await
    }

    /// Stores the end of a file that is about to be removed. Replaces the previous content, because a retry boots
    /// from the start.
    pub async fn keep_tail(&self, vm: VmId, source: LogSource, from: &Path) -> io::Result<()> {
        let (dir, path, from, space) = (self.of(vm), self.path(vm, source), from.to_owned(), self.space.clone());
        blocking_io(move || {
            let Some(tail) = files::read_tail(&from, CAP)? else { return Ok(()) };
            files::ensure_private_dir(&dir)?;
            space.write(tail.len(), || files::replace_unsynced(&path, &tail))
        })
        .await
    }

    /// Appends the end of another program's log, below a heading. An empty or missing log adds nothing.
    pub async fn append_tail(&self, vm: VmId, source: LogSource, heading: String, from: &Path) -> io::Result<()> {
        let from = from.to_owned();
        let tail = blocking_io(move || -> io::Result<Vec<u8>> {
            let mut tail = files::read_tail(&from, TAIL)?.unwrap_or_default();
            // A file that was truncated while it was written has a hole at its beginning.
            let hole = tail.iter().take_while(|byte| **byte == 0).count();
            tail.drain(..hole);
            Ok(tail)
        })
        .await?;
        if tail.trim_ascii().is_empty() {
            return Ok(());
        }
        let mut bytes = heading.into_bytes();
        bytes.extend(tail);
        if !bytes.ends_with(b"\n") {
            bytes.push(b'\n');
        }
        self.append(vm, source, bytes).await
    }

    /// The vms that have logs.
    pub async fn vms(&self) -> io::Result<Vec<VmId>> {
        let dir = self.dir.clone();
        blocking_io(move || {
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other?,
            };
            let mut vms = Vec::new();
            for entry in entries {
                // A name that is not a vm's id is not ours and is left alone.
                vms.extend(entry?.file_name().to_str().and_then(|name| name.parse::<VmId>().ok()));
            }
            Ok(vms)
        })
        .await
    }

    pub async fn remove(&self, vm: VmId) -> io::Result<()> {
        let dir = self.of(vm);
        blocking_io(move || match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_log_is_capped_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().join("logs"));
        let vm = VmId::mint();
        for _ in 0..20 {
            logs.append(vm, LogSource::Job, vec![b'x'; 100 * 1024]).await.unwrap();
        }
        let text = std::fs::read(logs.path(vm, LogSource::Job)).unwrap();
        assert!(text.len() as u64 <= CAP + 64, "{}", text.len());
        assert!(text.ends_with(b"dropped]\n"));
        assert_eq!(logs.vms().await.unwrap(), [vm]);
        logs.remove(vm).await.unwrap();
        assert!(!logs.path(vm, LogSource::Job).exists());
    }
}
