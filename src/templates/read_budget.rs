//! Bounds how much of a file a parser reads by the size of the file, and stops it when the future of its caller is
//! dropped.
//!
//! The sizes in a file (the number of its tables, the size of its file system) are chosen by its author and can be
//! arbitrarily large. So parsers read untrusted files through a [`ReadBudget`], which refuses when more was read than the file can justify.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rustix::{fs::SeekFrom, io::Errno};

/// How often the bytes of a file may be read.
const TIMES: u64 = 4;
/// Bytes that may be read in addition, however small the file is.
const ALWAYS: u64 = 64 << 20;
/// A smaller read counts as this many bytes.
const LEAST: u64 = 64;

/// Set when the work is not needed any more.
#[derive(Clone, Debug, Default)]
pub(super) struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Cancels when it is dropped: held by the future that waits for the work.
#[derive(Debug)]
pub(super) struct CancelOnDrop(pub StopFlag);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// The bytes that a parser may still read.
#[derive(Debug)]
pub(super) struct ReadBudget {
    done: AtomicU64,
    most: u64,
    stop: StopFlag,
}

impl ReadBudget {
    /// For a parser of this file. Counts what takes space on the disk: holes cost nothing.
    pub fn bounded_by(file: &File) -> io::Result<ReadBudget> {
        let found = file.metadata()?;
        let there = found.len().min(found.blocks().saturating_mul(512));
        Ok(ReadBudget {
            done: AtomicU64::new(0),
            most: there.saturating_mul(TIMES).saturating_add(ALWAYS),
            stop: StopFlag::default(),
        })
    }

    pub fn until(self, stop: &StopFlag) -> ReadBudget {
        ReadBudget { stop: stop.clone(), ..self }
    }

    #[cfg(test)]
    pub fn stop(&self) -> &StopFlag {
        &self.stop
    }

    #[cfg(test)]
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether the parser may continue.
    pub fn check(&self) -> Result<(), String> {
        if self.stop.is_cancelled() {
            return Err("could not be checked: the operation was cancelled".into());
        }
        if self.done.load(Ordering::Relaxed) > self.most {
            return Err("refers to the same parts of itself again and again, make a new image of it".into());
        }
        Ok(())
    }

    /// Reads exactly, or says what is wrong.
    pub fn read(&self, file: &File, into: &mut [u8], at: u64) -> Result<(), String> {
        self.check()?;
        let bytes = (into.len() as u64).max(LEAST);
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.check()?;
        file.read_exact_at(into, at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => "is cut off, copy or download it again".to_owned(),
            kind => format!("cannot be read: {kind}"),
        })
    }
}

/// The parts of a range that are no holes. If the file system does not report holes, the whole range.
pub(super) fn data_in(file: &File, range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let (start, end) = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) if start >= range.end => return None,
            Ok(start) => (start, rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(range.end).min(range.end)),
            // Only a hole is left.
            Err(Errno::NXIO) => return None,
            Err(_) => (at, range.end),
        };
        at = end.max(start + 1);
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_again_and_again_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[1; 4096], 0).unwrap();
        file.sync_all().unwrap();
        let budget = ReadBudget::bounded_by(&file).unwrap();
        let mut block = [0; 4096];
        let reads = (0..).find(|_| budget.read(&file, &mut block, 0).is_err()).unwrap();
        assert!((16_384..17_000).contains(&reads), "{reads}");
        let stop = StopFlag::default();
        let budget = ReadBudget::bounded_by(&file).unwrap().until(&stop);
        budget.read(&file, &mut block, 0).unwrap();
        assert!(budget.read(&file, &mut block, 1).unwrap_err().contains("cut off"));
        drop(CancelOnDrop(stop));
        assert!(budget.read(&file, &mut block, 0).unwrap_err().contains("cancelled"));
    }

    #[test]
    fn data_is_found_between_holes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[1; 10], 20 << 20).unwrap();
        let parts: Vec<_> = data_in(&file, 0..64 << 20).collect();
        assert!(parts.iter().any(|part| part.contains(&(20 << 20))), "{parts:?}");
        assert!(data_in(&file, 0..0).next().is_none());
    }
}
