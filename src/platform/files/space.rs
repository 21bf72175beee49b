//! Keeps part of a file system free. Every writer of large files asks a [`SpaceGuard`] before each write.
//!
//! What a writer will need can rarely be known before it begins: an image unpacks to an unknown number of blocks. So
//! the limit is enforced while it writes. All guards of one file system share one tally, so that writers which write
//! at the same time do not count on the same free bytes.
//!
//! Limits of the promise: the file system is measured at least once for every [`MEASURE_EVERY`] bytes, so the guarded
//! writers together miss at most what other programs write meanwhile. Metadata of the file system (tables of a
//! fragmented file) is not counted. A program that writes by itself is measured every [`WATCH_EVERY`].

use std::{
    fs,
    io::{self, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;

/// Bytes that are written between two measurements, unless the limit is near: then each write is measured.
pub const MEASURE_EVERY: u64 = 16 << 20;
/// Interval at which a program that writes by itself is checked.
pub const WATCH_EVERY: Duration = Duration::from_millis(50);

/// A program whose write did not fit may leave this free, in bytes: it was more than one block of a file.
const ALMOST_NOTHING: u64 = 4 << 20;

/// A write that would leave too little space. It is inside an error of the kind `StorageFull`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} MiB are free, and {} MiB must stay free", free >> 20, keep_free.div_ceil(1 << 20))]
pub struct SpaceLow {
    pub free: u64,
    pub keep_free: u64,
}

impl SpaceLow {
    /// The reason of an error, if this is it.
    pub fn of(error: &io::Error) -> Option<SpaceLow> {
        error.get_ref()?.downcast_ref::<SpaceLow>().copied()
    }
}

/// The permission to write to one file system, down to a limit.
#[derive(Clone, Debug)]
pub struct SpaceGuard {
    file_system: Arc<FileSystem>,
    /// 0: nothing is checked, and the file system itself refuses.
    keep_free: u64,
}

#[derive(Debug)]
struct FileSystem {
    dir: PathBuf,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    /// What is free, after everything that was permitted since the last measurement.
    free: u64,
    /// What may be permitted before the next measurement.
    trusted: u64,
    /// Permitted, and not written yet as far as is known: a measurement may count it as free.
    in_flight: u64,
}

/// Permitted bytes, until they are written.
#[derive(Debug)]
pub struct SpacePermit<'a> {
    file_system: &'a FileSystem,
    bytes: u64,
}

impl Drop for SpacePermit<'_> {
    fn drop(&mut self) {
        self.file_system.tally.lock().in_flight -= self.bytes;
    }
}

impl SpaceGuard {
    /// `dir` exists and is on the file system.
    pub fn new(dir: PathBuf, keep_free: u64) -> SpaceGuard {
        SpaceGuard { file_system: Arc::new(FileSystem { dir, tally: Mutex::default() }), keep_free }
    }

    /// Another limit on the same file system.
    pub fn keeping(&self, keep_free: u64) -> SpaceGuard {
        SpaceGuard { file_system: self.file_system.clone(), keep_free }
    }

    /// The guard for another directory. On another file system nothing has to stay free.
    pub fn at(&self, dir: &Path) -> io::Result<SpaceGuard> {
        if fs::metadata(dir)?.dev() == fs::metadata(&self.file_system.dir)?.dev() {
            return Ok(self.clone());
        }
        Ok(SpaceGuard::new(dir.to_owned(), 0))
    }

    /// What may be written now. `dir` is on the guard's file system.
    pub fn available(&self, dir: &Path) -> io::Result<u64> {
        Ok(free(dir)?.saturating_sub(self.keep_free))
    }

    /// Permits one write, or refuses it with the kind `StorageFull`. The permit must live until the bytes are written.
    pub fn permit(&self, bytes: u64) -> io::Result<SpacePermit<'_>> {
        let file_system = &*self.file_system;
        let bytes = if self.keep_free == 0 { 0 } else { bytes };
        let mut tally = file_system.tally.lock();
        if bytes > 0 {
            let fits = |tally: &Tally| tally.free.checked_sub(bytes).is_some_and(|left| left >= self.keep_free);
            if tally.trusted < bytes || !fits(&tally) {
                tally.free = free(&file_system.dir)?.saturating_sub(tally.in_flight);
                tally.trusted = MEASURE_EVERY;
            }
            if !fits(&tally) {
                return Err(low(tally.free, self.keep_free));
            }
            tally.free -= bytes;
            tally.trusted = tally.trusted.saturating_sub(bytes);
            tally.in_flight += bytes;
        }
        Ok(SpacePermit { file_system, bytes })
    }

    /// Writes, if it is permitted.
    pub fn write<T>(&self, bytes: usize, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let _permit = self.permit(bytes as u64)?;
        write()
    }

    /// A writer whose writes need the permission.
    pub fn writer<W: Write>(&self, to: W) -> GuardedWriter<W> {
        GuardedWriter { to, space: self.clone() }
    }

    /// Returns once less is free than must be, for a program that cannot ask. It has to be ended then.
    pub async fn exhausted(&self) -> io::Error {
        if self.keep_free == 0 {
            return std::future::pending().await;
        }
        loop {
            match self.shortage() {
                Ok(None) => tokio::time::sleep(WATCH_EVERY).await,
                Ok(Some(error)) | Err(error) => return error,
            }
        }
    }

    /// Why a program that wrote by itself may have failed: less is free than must be, or almost nothing.
    pub fn shortage(&self) -> io::Result<Option<io::Error>> {
        let free = free(&self.file_system.dir)?;
        Ok((free < self.keep_free.max(ALMOST_NOTHING)).then(|| low(free, self.keep_free)))
    }
}

/// What ordinary users may still write to the file system of a directory.
pub fn free(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn low(free: u64, keep_free: u64) -> io::Error {
    io::Error::new(io::ErrorKind::StorageFull, SpaceLow { free, keep_free })
}

/// See [`SpaceGuard::writer`].
#[derive(Debug)]
pub struct GuardedWriter<W> {
    to: W,
    space: SpaceGuard,
}

impl<W> GuardedWriter<W> {
    pub fn get_ref(&self) -> &W {
        &self.to
    }
}

impl<W: Write> Write for GuardedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.space.write(bytes.len(), || self.to.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
#[path = "space_tests.rs"]
mod tests;
