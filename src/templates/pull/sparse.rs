//! Writes a chunk of a disk to its offset, and leaves holes for zeros.
//!
//! A chunk is cut into buffers, so that one thread can fill them while another one writes.

use std::{io, mem};

use super::disk::{ALIGNMENT, Disk};

/// Runs of zeros become holes in aligned units of this size: smaller holes cost more in the file system's tables than
/// they save.
const BLOCK: u64 = 16 << 10;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Limit of one write.
const BUFFER: u64 = 1 << 20;

/// Bytes and their offset, in memory that is aligned like the offset: see [`Disk::write`].
pub(super) struct Buffer {
    at: u64,
    room: Vec<u8>,
    start: usize,
    filled: usize,
}

impl Buffer {
    pub fn new() -> Buffer {
        Buffer { at: 0, room: vec![0; BUFFER as usize + ALIGNMENT], start: 0, filled: 0 }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.room[self.start..self.start + self.filled]
    }

    fn begin(&mut self, at: u64) {
        let page = self.room.as_ptr().align_offset(ALIGNMENT);
        (self.at, self.start, self.filled) = (at, page + at as usize % ALIGNMENT, 0);
    }

    /// It ends at a multiple of its size, so that the next one starts aligned. An unaligned one is correspondingly
    /// shorter.
    fn left(&self) -> usize {
        (BUFFER - self.at % BUFFER) as usize - self.filled
    }

    fn add(&mut self, bytes: &[u8]) {
        self.room[self.start + self.filled..][..bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

/// Receives a full buffer, and returns an empty one.
pub(super) type BufferExchange<'a> = dyn FnMut(Buffer) -> io::Result<Buffer> + 'a;

/// Cuts a chunk into buffers.
pub(super) struct Cutter {
    end: u64,
    buffer: Buffer,
}

impl Cutter {
    /// For `size` bytes from `offset`.
    pub fn new(offset: u64, size: u64) -> Cutter {
        let mut buffer = Buffer::new();
        buffer.begin(offset);
        Cutter { end: offset + size, buffer }
    }

    pub fn write(&mut self, mut bytes: &[u8], full: &mut BufferExchange) -> io::Result<()> {
        if bytes.len() as u64 > self.end - self.buffer.at - self.buffer.filled as u64 {
            return Err(io::Error::other("more than the piece should hold"));
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.buffer.left()));
            self.buffer.add(now);
            if self.buffer.left() == 0 {
                self.flush(full)?;
            }
            bytes = later;
        }
        Ok(())
    }

    /// The rest, which has not filled its buffer.
    pub fn flush(&mut self, full: &mut BufferExchange) -> io::Result<()> {
        let next = self.buffer.at + self.buffer.filled as u64;
        // A placeholder without memory.
        let none = Buffer { at: next, room: Vec::new(), start: 0, filled: 0 };
        self.buffer = full(mem::replace(&mut self.buffer, none))?;
        self.buffer.begin(next);
        Ok(())
    }
}

/// The range of a chunk.
#[derive(Clone, Copy)]
pub(super) struct BufferPlacement<'a> {
    disk: &'a Disk,
    /// It contains zeros, so zeros need not be written.
    blank: bool,
}

impl<'a> BufferPlacement<'a> {
    /// `size` bytes from `offset`. `blank`: nothing has been written there before.
    pub fn new(disk: &'a Disk, offset: u64, size: u64, blank: bool) -> BufferPlacement<'a> {
        BufferPlacement { disk, blank: blank || disk.punch(offset, size) }
    }

    pub fn write(&self, buffer: &Buffer) -> io::Result<()> {
        let bytes = buffer.bytes();
        let mut start = 0;
        // The bytes from `start` to `at` have to be written.
        let mut at = 0;
        while at < bytes.len() {
            let block = (BLOCK - (buffer.at + at as u64) % BLOCK) as usize;
            let next = (at + block).min(bytes.len());
            if self.blank && bytes[at..next] == ZEROS[..next - at] {
                self.disk.write(&bytes[start..at], buffer.at + start as u64)?;
                start = next;
            }
            at = next;
        }
        self.disk.write(&bytes[start..], buffer.at + start as u64)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    /// Blocks of zeros and of text, cut at unaligned offsets.
    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| if (at / 40_000) % 3 == 1 { 0 } else { (at % 251) as u8 }).collect()
    }

    /// One as in pulls, and one on a system that cannot bypass the cache.
    fn disks(dir: &tempfile::TempDir, size: u64) -> [Disk; 2] {
        [Disk::unlimited(&dir.path().join("disk"), size, None), Disk::cached(&dir.path().join("cached"), size)]
    }

    fn dir() -> tempfile::TempDir {
        // Not on a memory file system, which may not support bypassing the cache.
        tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap()
    }

    fn write(disk: &Disk, offset: u64, piece: &[u8], step: usize, blank: bool) {
        let place = BufferPlacement::new(disk, offset, piece.len() as u64, blank);
        let mut cutter = Cutter::new(offset, piece.len() as u64);
        let mut full = |buffer: Buffer| place.write(&buffer).map(|()| buffer);
        piece.chunks(step).for_each(|bytes| cutter.write(bytes, &mut full).unwrap());
        cutter.flush(&mut full).unwrap();
    }

    #[test]
    fn a_piece_is_where_it_belongs_and_its_zeros_are_holes() {
        let dir = dir();
        for disk in disks(&dir, 8_000_001) {
            let (first, second) = (content(3_000_001), vec![0; 5_000_000]);
            write(&disk, 3_000_001, &second, 65_536, true);
            write(&disk, 0, &first, 70_001, true);
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
                write(&disk, offset, &piece, 100_003, disk.blank);
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
            write(&disk, 50_000, &piece, 200_000, false);
            let mut found = vec![1; 300_000];
            disk.file().read_exact_at(&mut found, 0).unwrap();
            assert!(found == [vec![7; 50_000], piece, vec![7; 50_000]].concat());
            assert!(Cutter::new(0, 10).write(&[1; 11], &mut Ok).is_err());
        }
    }
}
