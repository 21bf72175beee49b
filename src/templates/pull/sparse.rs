//! Writes a piece of a disk where it belongs, and leaves holes where it is zero.

use std::{fs::File, io, os::unix::fs::FileExt as _};

/// Runs of zeros are left out in units of this, aligned on the disk whatever the piece begins at: smaller holes cost more in
/// the file system's tables than they save.
const BLOCK: u64 = 16 << 10;
const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];

/// Written at once, at most.
const BUFFER: u64 = 1 << 20;

pub(super) struct Writer<'a> {
    file: &'a File,
    /// Where the buffer's first byte goes.
    at: u64,
    end: u64,
    buffer: Vec<u8>,
    /// The place holds zeros already, so that zeros need not be written.
    blank: bool,
}

impl<'a> Writer<'a> {
    /// For `size` bytes from `offset` on. `blank`: nobody has written there before.
    pub fn new(file: &'a File, offset: u64, size: u64, blank: bool) -> Writer<'a> {
        let blank = blank || blanked(file, offset, size);
        Writer { file, at: offset, end: offset + size, buffer: Vec::with_capacity(BUFFER as usize), blank }
    }

    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        if bytes.len() as u64 > self.end - self.at - self.buffer.len() as u64 {
            return Err(io::Error::other("more than the piece should hold"));
        }
        while !bytes.is_empty() {
            // The buffer ends where a block does.
            let room = BUFFER - self.at % BUFFER - self.buffer.len() as u64;
            let (now, later) = bytes.split_at(bytes.len().min(room as usize));
            self.buffer.extend_from_slice(now);
            if now.len() as u64 == room {
                self.flush()?;
            }
            bytes = later;
        }
        Ok(())
    }

    pub fn flush(&mut self) -> io::Result<()> {
        let mut start = 0;
        // From `start` to `at` is to be written.
        let mut at = 0;
        while at < self.buffer.len() {
            let block = (BLOCK - (self.at + at as u64) % BLOCK) as usize;
            let next = (at + block).min(self.buffer.len());
            if self.blank && self.buffer[at..next] == ZEROS[..next - at] {
                self.file.write_all_at(&self.buffer[start..at], self.at + start as u64)?;
                start = next;
            }
            at = next;
        }
        self.file.write_all_at(&self.buffer[start..], self.at + start as u64)?;
        self.at += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

/// Makes a hole, where the system can.
#[cfg(target_os = "linux")]
fn blanked(file: &File, offset: u64, size: u64) -> bool {
    use rustix::fs::{FallocateFlags, fallocate};
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, size).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn blanked(_: &File, _: u64, _: u64) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    /// Blocks of zeros and of text, cut at places that fit nothing.
    fn content(size: usize) -> Vec<u8> {
        (0..size).map(|at| if (at / 40_000) % 3 == 1 { 0 } else { (at % 251) as u8 }).collect()
    }

    #[test]
    fn a_piece_is_where_it_belongs_and_its_zeros_are_holes() {
        let file = tempfile::tempfile().unwrap();
        let (first, second) = (content(3_000_001), vec![0; 5_000_000]);
        file.set_len(8_000_001).unwrap();
        for (offset, piece, step) in [(3_000_001, &second, 65_536), (0, &first, 70_001)] {
            let mut writer = Writer::new(&file, offset, piece.len() as u64, true);
            piece.chunks(step).for_each(|bytes| writer.write(bytes).unwrap());
            writer.flush().unwrap();
        }
        let mut found = vec![1; 8_000_001];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == [first, second].concat());
        let taken = file.metadata().unwrap().blocks() * 512;
        assert!(taken < 2_600_000, "{taken} bytes");
    }

    #[test]
    fn what_was_there_before_is_gone() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&vec![7; 300_000], 0).unwrap();
        let piece = content(200_000);
        let mut writer = Writer::new(&file, 50_000, piece.len() as u64, false);
        writer.write(&piece).unwrap();
        writer.flush().unwrap();
        let mut found = vec![1; 300_000];
        file.read_exact_at(&mut found, 0).unwrap();
        assert!(found == [vec![7; 50_000], piece, vec![7; 50_000]].concat());

        let mut writer = Writer::new(&file, 0, 10, false);
        assert!(writer.write(&[1; 11]).is_err());
    }
}
