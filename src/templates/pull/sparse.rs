//! Writes a piece of a disk where it belongs, and leaves holes where it is zero.

use std::io;

use super::disk::{ALIGNMENT, Disk};

/// Runs of zeros are left out in units of this, aligned on the disk whatever the piece begins at: smaller holes cost more in
/// the file system's tables than they save.
const BLOCK: u64 = 16 << 10;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Written at once, at most.
const BUFFER: u64 = 1 << 20;

pub(super) struct Writer<'a> {
    disk: &'a Disk,
    /// Where the buffer's first byte goes.
    at: u64,
    end: u64,
    /// With room to begin where the memory is aligned as the disk is: see [`Disk::write`].
    room: Vec<u8>,
    start: usize,
    /// In the buffer, from `start` on.
    filled: usize,
    /// The place holds zeros already, so that zeros need not be written.
    blank: bool,
}

impl<'a> Writer<'a> {
    /// For `size` bytes from `offset` on. `blank`: nobody has written there before.
    pub fn new(disk: &'a Disk, offset: u64, size: u64, blank: bool) -> Writer<'a> {
        let blank = blank || disk.punch(offset, size);
        let room = vec![0; BUFFER as usize + ALIGNMENT];
        let mut writer = Writer { disk, at: offset, end: offset + size, room, start: 0, filled: 0, blank };
        writer.align();
        writer
    }

    /// Only where the buffer is empty.
    fn align(&mut self) {
        let page = self.room.as_ptr().align_offset(ALIGNMENT);
        // At the boundaries of buffers there is no more than this; before the first of them the buffer is shorter.
        self.start = page + self.at as usize % ALIGNMENT;
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.end - self.at - self.filled as u64 {
            return Err(io::Error::other("more than the piece should hold"));
        }
        while !bytes.is_empty() {
            // The buffer ends where a block does.
            let room = (BUFFER - self.at % BUFFER) as usize - self.filled;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.room[self.start + self.filled..][..now.len()].copy_from_slice(now);
            self.filled += now.len();
            if now.len() == room {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let buffer = &self.room[self.start..self.start + self.filled];
        let mut start = 0;
        // From `start` to `at` is to be written.
        let mut at = 0;
        while at < buffer.len() {
            let block = (BLOCK - (self.at + at as u64) % BLOCK) as usize;
            let next = (at + block).min(buffer.len());
            if self.blank && buffer[at..next] == ZEROS[..next - at] {
                self.disk.write(&buffer[start..at], self.at + start as u64)?;
                start = next;
            }
            at = next;
        }
        self.disk.write(&buffer[start..], self.at + start as u64)?;
        self.at += self.filled as u64;
        self.filled = 0;
        self.align();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    /// Blocks of zeros and of text, cut at places that fit nothing.
    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| if (at / 40_000) % 3 == 1 { 0 } else { (at % 251) as u8 }).collect()
    }

    /// One as pulls have it, and one on a system that knows no way past the cache.
    fn disks(dir: &tempfile::TempDir, size: u64) -> [Disk; 2] {
        [Disk::open(&dir.path().join("disk"), size, None).unwrap(), Disk::cached(&dir.path().join("cached"), size)]
    }

    fn dir() -> tempfile::TempDir {
        // Not in memory, where there may be no way past the cache.
        tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
    }

    #[test]
    fn a_piece_is_where_it_belongs_and_its_zeros_are_holes() {
        let dir = dir();
        for disk in disks(&dir, 8_000_001) {
            let (first, second) = (content(3_000_001), vec![0; 5_000_000]);
            for (offset, piece, step) in [(3_000_001, &second, 65_536), (0, &first, 70_001)] {
                let mut writer = Writer::new(&disk, offset, piece.len() as u64, true);
                piece.chunks(step).for_each(|bytes| writer.write(bytes).unwrap());
                writer.flush().unwrap();
            }
            let mut found = vec![1; 8_000_001];
            disk.file().read_exact_at(&mut found, 0).unwrap();
            assert!(found == [first, second].concat());
            disk.file().sync_data().unwrap();
            let taken = disk.file().metadata().unwrap().blocks() * 512;
            assert!(taken < 2_600_000, "{taken} bytes");
        }
    }

    #[test]
    fn long_runs_are_right_wherever_they_begin() {
        let dir = dir();
        let piece: Vec<u8> = (0..1_200_000_u32).map(|at| (at % 249) as u8 + 1).collect();
        for offset in [0, 1, 511, 512, 4095, 4096, 500_000, (1 << 20) - 1, 1 << 20, 1_048_577] {
            for disk in disks(&dir, 3_000_000) {
                let mut writer = Writer::new(&disk, offset, piece.len() as u64, disk.blank);
                piece.chunks(100_003).for_each(|bytes| writer.write(bytes).unwrap());
                writer.flush().unwrap();
                let mut found = vec![1; piece.len()];
                disk.file().read_exact_at(&mut found, offset).unwrap();
                assert!(found == piece, "at {offset}");
            }
        }
    }

    #[test]
    fn what_was_there_before_is_gone() {
        let dir = dir();
        for disk in disks(&dir, 300_000) {
            disk.write(&vec![7; 300_000], 0).unwrap();
            let piece = content(200_000);
            let mut writer = Writer::new(&disk, 50_000, piece.len() as u64, false);
            writer.write(&piece).unwrap();
            writer.flush().unwrap();
            let mut found = vec![1; 300_000];
            disk.file().read_exact_at(&mut found, 0).unwrap();
            assert!(found == [vec![7; 50_000], piece, vec![7; 50_000]].concat());

            let mut writer = Writer::new(&disk, 0, 10, false);
            assert!(writer.write(&[1; 11]).is_err());
        }
    }
}
