//! The last decoded bytes, to which matches can refer.
//!
//! Blocks are decoded one after another into one buffer. When it is full, the last 64 KiB are moved to its front: one
//! move in several blocks, where an exact window would need one per block.

use lz4_flex::block::{DecompressError, decompress_into_with_dict};

use super::REACH;

/// For blocks of the usual 64 KiB: space for three of them after the bytes that matches can reach.
const USUAL_BYTES: usize = 4 * REACH;

#[derive(Default)]
pub(super) struct MatchWindow {
    buffer: Vec<u8>,
    /// The last bytes of the output are `buffer[..filled]`, at least as many as a match can reach.
    filled: usize,
}

impl MatchWindow {
    /// Decodes `block` into `size` bytes of space and returns the content, which may be shorter.
    pub(super) fn decode(&mut self, block: &[u8], size: usize) -> Result<&[u8], DecompressError> {
        self.make_room(size);
        let (past, ahead) = self.buffer.split_at_mut(self.filled);
        let reachable = &past[past.len().saturating_sub(REACH)..];
        let decoded = decompress_into_with_dict(block, &mut ahead[..size], reachable)?;
        let start = self.filled;
        self.filled += decoded;
        Ok(&self.buffer[start..self.filled])
    }

    /// Appends bytes that went to the output without decoding.
    pub(super) fn remember(&mut self, plain: &[u8]) {
        let plain = &plain[plain.len().saturating_sub(REACH)..];
        self.make_room(plain.len());
        self.buffer[self.filled..][..plain.len()].copy_from_slice(plain);
        self.filled += plain.len();
    }

    fn make_room(&mut self, size: usize) {
        if self.filled + size <= self.buffer.len() {
            return;
        }
        let keep = self.filled.min(REACH);
        let kept = self.filled - keep..self.filled;
        if keep + size <= self.buffer.len() {
            self.buffer.copy_within(kept, 0);
        } else {
            let mut larger = vec![0; (keep + size).max(USUAL_BYTES)];
            larger[..keep].copy_from_slice(&self.buffer[kept]);
            self.buffer = larger;
        }
        self.filled = keep;
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.buffer.capacity()
    }
}
