//! A file that holds disk space for the database.
//!
//! On a full disk the service must still be able to record that a vm has ended or that a pull was cancelled, because
//! that is how space becomes free. Before a commit that might not fit any more, a part of the file is given up. Only a
//! part, because other programs may take what becomes free. From then on new work is refused ([`DatabaseHealth::space_fault`]),
//! until there is enough space for the whole file again.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

use super::health::{DatabaseHealth, beside};
use crate::platform::{files, settings::section, tasks::blocking_io};

/// What a commit may need: a batch of requests, each with the pages that it changes.
pub(super) const HEADROOM: u64 = 4 << 20;
/// What is given up at once.
const PART: u64 = 4 << 20;
/// What stays free when space is kept again, so that it is not given up again at once. With less, new work is refused.
const FREE_AFTERWARDS: u64 = 12 << 20;
/// Interval of tries to complete the file.
pub(super) const REFILL_EVERY: Duration = Duration::from_secs(2);

section! {
    /// The database.
    pub struct DatabaseSection {
        /// Size of the file `database.reserve` in the data directory, in bytes. It keeps disk space for the database: when
        /// the disk is full, the file is given up bit by bit, so that vms can still end, and pulls and templates can still
        /// be cancelled and removed; new work is refused meanwhile. The file is completed when there is space again. 0: no
        /// such file.
        reserve_bytes: u64 = 32 << 20, in 0..=1_099_511_627_776;
    }
}

/// Where the file is, and how large it should be.
#[derive(Clone, Debug)]
pub struct ReserveFile {
    pub path: PathBuf,
    /// 0: there is none.
    pub bytes: u64,
}

impl ReserveFile {
    /// Nothing is kept for this database.
    pub fn none(database: &Path) -> Self {
        Self { path: beside(database, "-reserve"), bytes: 0 }
    }
}

/// The file, as the writer knows it.
pub(super) struct DatabaseReserve {
    file: Arc<Mutex<HeldFile>>,
    bytes: u64,
    /// Whether a part of it is missing.
    incomplete: bool,
    health: DatabaseHealth,
}

struct HeldFile {
    at: ReserveFile,
    held: u64,
}

impl DatabaseReserve {
    /// Completes the file if there is space. A service without its reserve is better than none, so a failure is logged.
    pub(super) async fn open(at: ReserveFile, health: DatabaseHealth) -> DatabaseReserve {
        let bytes = at.bytes;
        let file = Arc::new(Mutex::new(HeldFile { at, held: 0 }));
        let mut reserve = DatabaseReserve { file: file.clone(), bytes, incomplete: bytes > 0, health };
        match blocking_io(move || file.lock().take_over()).await {
            Ok(complete) => reserve.incomplete &= !complete,
            Err(error) => tracing::warn!(%error, "cannot use the file that keeps disk space for the database"),
        }
        if reserve.incomplete {
            reserve.refill().await;
        }
        if reserve.incomplete {
            tracing::warn!(
                "there is not enough disk space to keep some for the database (database.reserve_bytes); the service tries again"
            );
        }
        reserve
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// Gives up parts until the next commit fits, or nothing is left. `free` is what was free a moment ago.
    pub(super) async fn make_headroom(&mut self, free: u64) {
        if free < HEADROOM {
            self.release(|held| held.free_up(HEADROOM)).await;
        }
    }

    /// After a write that found the disk full although there seemed to be space.
    pub(super) async fn disk_was_full(&mut self) {
        self.release(HeldFile::give_up_part).await;
    }

    async fn release(&mut self, f: impl FnOnce(&mut HeldFile) -> io::Result<u64> + Send + 'static) {
        if self.bytes == 0 {
            return;
        }
        let file = self.file.clone();
        match blocking_io(move || f(&mut file.lock())).await {
            Ok(0) => {}
            Ok(given_up) => {
                self.incomplete = true;
                tracing::warn!(given_up, "the disk is full: gave up some of the space that is kept for the database");
            }
            Err(error) => tracing::error!(%error, "cannot give up the space that is kept for the database"),
        }
        self.health.set_low(true);
    }

    /// Takes space again, as far as enough stays free.
    pub(super) async fn refill(&mut self) {
        let file = self.file.clone();
        match blocking_io(move || file.lock().refill()).await {
            Ok(Refilled { free, missing }) => {
                self.incomplete = missing > 0;
                if free >= FREE_AFTERWARDS && self.health.space_fault().is_some() {
                    tracing::info!(missing, "there is disk space again for new vms");
                    self.health.set_low(false);
                }
            }
            Err(error) => tracing::debug!(%error, "cannot keep disk space for the database yet"),
        }
    }
}

struct Refilled {
    free: u64,
    missing: u64,
}

impl HeldFile {
    fn dir(&self) -> &Path {
        self.at.path.parent().unwrap_or(Path::new("."))
    }

    fn free(&self) -> io::Result<u64> {
        files::free(self.dir())
    }

    /// Takes over the file that the last start left. Returns whether it is complete.
    fn take_over(&mut self) -> io::Result<bool> {
        let ReserveFile { path, bytes } = &self.at;
        if *bytes == 0 {
            files::ignore_not_found(std::fs::remove_file(path))?;
            return Ok(true);
        }
        let file = files::private().write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() > *bytes {
            file.set_len(*bytes)?;
        }
        self.held = allocated(&file)?.min(*bytes);
        Ok(self.held == *bytes)
    }

    fn free_up(&mut self, wanted: u64) -> io::Result<u64> {
        let mut released = 0;
        while self.free()? < wanted {
            match self.give_up_part()? {
                0 => break,
                part => released += part,
            }
        }
        Ok(released)
    }

    fn give_up_part(&mut self) -> io::Result<u64> {
        let part = self.held.min(PART);
        if part > 0 {
            files::private().write(true).open(&self.at.path)?.set_len(self.held - part)?;
            self.held -= part;
        }
        Ok(part)
    }

    fn refill(&mut self) -> io::Result<Refilled> {
        let missing = self.at.bytes.saturating_sub(self.held);
        let free = self.free()?;
        let take = missing.min(free.saturating_sub(FREE_AFTERWARDS));
        // Each change of the file costs a flush, so a small one is left for later.
        if take == 0 || take < missing.min(PART) {
            return Ok(Refilled { free, missing });
        }
        let file = files::private().write(true).create(true).truncate(false).open(&self.at.path)?;
        let filled = allocate(&file, self.held, take).and_then(|()| file.sync_all());
        if let Err(error) = filled {
            // Space beyond `held` would never be given up.
            let _ = file.set_len(self.held);
            return Err(error);
        }
        let before = self.held;
        self.held = allocated(&file)?.min(self.at.bytes);
        if self.held < before + take {
            return Err(io::Error::other("the file system stores the file without taking space for it"));
        }
        Ok(Refilled { free: self.free()?, missing: missing - take })
    }
}

/// The part of a file's length that takes space.
fn allocated(file: &File) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let found = file.metadata()?;
    Ok(found.len().min(found.blocks() * 512))
}

/// Makes a range of a file take space.
fn allocate(file: &File, at: u64, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::{
            fs::{FallocateFlags, fallocate},
            io::Errno,
        };
        match fallocate(file, FallocateFlags::empty(), at, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            done => return Ok(done?),
        }
    }
    use std::os::unix::fs::FileExt as _;
    // Not zeros, for which some file systems take no space.
    let block: Vec<u8> = (0..1_u32 << 18).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let mut written = 0;
    while written < bytes {
        let n = (bytes - written).min(block.len() as u64);
        file.write_all_at(&block[..n as usize], at + written)?;
        written += n;
    }
    Ok(())
}

#[cfg(test)]
#[path = "reserve_tests.rs"]
mod tests;
