//! Decodes a stream that arrives in pieces.
//!
//! Sizes in a stream are not trusted. Each is checked against the limits of the format and of the expected output
//! before it is used, and memory is allocated for bytes that have arrived, never for announced ones.

use std::io;

use lz4_flex::block::DecompressError;

use super::{COMPRESSED, END, MAX_BLOCK_BYTES, STORED, window::MatchWindow};

type Out<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

const MAGIC_BYTES: usize = 4;
/// Magic and two words. A stored block has one word; why its second one is looked at: see [`DecoderState::Doubtful`].
const HEADER_BYTES: usize = 12;
/// Limit of the shown beginning of data that is not a stream.
const SHOWN_BYTES: usize = 200;

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("bad LZ4 data at compressed byte {compressed} (uncompressed byte {uncompressed}): {fault}")]
    Bad {
        /// Start of the invalid block, or the end of the data if it is truncated.
        compressed: u64,
        /// Number of bytes decoded before.
        uncompressed: u64,
        fault: DecodeFault,
    },
    #[error("cannot write what was decoded: {0}")]
    Write(#[source] io::Error),
    #[error("the LZ4 decoder has failed before and cannot go on")]
    FailedBefore,
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeFault {
    #[error("expected a block (bv41, bv4-) or the end of the stream (bv4$), found \"{}\"", found.escape_ascii())]
    UnknownBlock {
        /// Four bytes, because the rest may be arbitrary disk content; more at the start of data that is not a stream
        /// at all.
        found: Vec<u8>,
    },
    #[error("a block of {size} bytes, but only {left} more are expected")]
    MoreThanExpected { size: u64, left: u64 },
    #[error("a compressed block of {size} bytes, the most that is decoded at once is {MAX_BLOCK_BYTES}")]
    BlockTooLarge { size: usize },
    #[error("a block of {encoded} bytes cannot decode to {decoded} bytes")]
    ImpossibleSizes { encoded: usize, decoded: usize },
    #[error("an LZ4 block of {encoded} bytes, to become {decoded}, is broken: {source}")]
    Block { encoded: usize, decoded: usize, source: DecompressError },
    #[error("a block that claims to hold {claimed} bytes holds {found}")]
    WrongSize { claimed: usize, found: usize },
    #[error("the stream ends here, but {left} more bytes are expected")]
    EndsEarly { left: u64 },
    #[error("cut off: expected {0}")]
    CutOff(&'static str),
}

enum DecoderState {
    /// At or in a block's header.
    Header,
    /// In the payload of a compressed block.
    Compressed {
        decoded: usize,
        encoded: usize,
    },
    /// In the bytes of a stored block.
    Stored {
        left: u64,
    },
    /// In a stored block whose size is followed by the same word again. Either the content happens to start with that
    /// number, or the writer uses a header with two sizes, as in an old description of the format. The position of
    /// the next block shows which, so the content is held back until then. If both readings fit, it is content.
    Doubtful {
        size: usize,
    },
    /// After the end marker.
    End,
    Failed,
}

/// Decodes one stream. Needs a few hundred KiB for blocks of Apple's size, and never much more than twice
/// [`MAX_BLOCK_BYTES`].
pub struct Decoder {
    expected: u64,
    /// Bytes read from the stream.
    compressed: u64,
    /// Bytes written to the output.
    uncompressed: u64,
    /// Start of the current block.
    block_start: u64,
    state: DecoderState,
    /// Incomplete header or payload.
    pending: Vec<u8>,
    window: MatchWindow,
}

impl Decoder {
    /// A decoder of a stream that must contain exactly `expected` bytes.
    pub fn new(expected: u64) -> Self {
        Self {
            expected,
            compressed: 0,
            uncompressed: 0,
            block_start: 0,
            state: DecoderState::Header,
            pending: Vec::new(),
            window: MatchWindow::default(),
        }
    }

    /// Reads the next piece of the stream, of any length, and passes its content to `out`, in order and in non-empty
    /// pieces of any length.
    pub fn push(&mut self, compressed: &[u8], out: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<(), DecodeError> {
        let result = self.run(compressed, out);
        if result.is_err() {
            self.state = DecoderState::Failed;
        }
        result
    }

    /// The number of decoded bytes, if the stream ended with its marker and has the expected length.
    pub fn finish(self) -> Result<u64, DecodeError> {
        let wanted = match self.state {
            DecoderState::End => return Ok(self.uncompressed),
            DecoderState::Failed => return Err(DecodeError::FailedBefore),
            DecoderState::Header if self.pending.is_empty() => "a block or the end of the stream",
            DecoderState::Header => "the rest of a block's header",
            DecoderState::Compressed { .. } => "the rest of a compressed block",
            DecoderState::Stored { .. } | DecoderState::Doubtful { .. } => "the rest of a stored block",
        };
        Err(self.bad_at(self.compressed, DecodeFault::CutOff(wanted)))
    }

    fn run(&mut self, mut input: &[u8], out: &mut Out) -> Result<(), DecodeError> {
        loop {
            match self.state {
                DecoderState::Failed => return Err(DecodeError::FailedBefore),
                DecoderState::End => return Ok(()),
                DecoderState::Header => {
                    if self.pending.is_empty() {
                        self.block_start = self.compressed;
                    }
                    if !self.gather(MAGIC_BYTES, &mut input) {
                        return Ok(());
                    }
                    let magic = four(&self.pending);
                    if magic == END {
                        let left = self.expected - self.uncompressed;
                        if left != 0 {
                            return Err(self.bad(DecodeFault::EndsEarly { left }));
                        }
                        self.state = DecoderState::End;
                        continue;
                    }
                    if !is_magic(magic) {
                        let mut found = self.pending.clone();
                        if self.block_start == 0 {
                            found.extend(input.iter().take(SHOWN_BYTES - MAGIC_BYTES));
                        }
                        return Err(self.bad(DecodeFault::UnknownBlock { found }));
                    }
                    if !self.gather(HEADER_BYTES, &mut input) {
                        return Ok(());
                    }
                    let (first, second) = (four(&self.pending[4..]), four(&self.pending[8..]));
                    self.pending.clear();
                    if magic == COMPRESSED {
                        self.begin_compressed(size(first), size(second))?;
                    } else {
                        self.begin_stored(first, second, out)?;
                    }
                }
                DecoderState::Compressed { decoded, encoded } => {
                    if self.pending.is_empty() && input.len() >= encoded {
                        let (payload, rest) = input.split_at(encoded);
                        input = rest;
                        self.compressed += encoded as u64;
                        self.decompress(payload, decoded, out)?;
                    } else if self.gather(encoded, &mut input) {
                        let payload = std::mem::take(&mut self.pending);
                        self.decompress(&payload, decoded, out)?;
                        self.reuse(payload);
                    } else {
                        return Ok(());
                    }
                    self.state = DecoderState::Header;
                }
                DecoderState::Stored { left: 0 } => self.state = DecoderState::Header,
                DecoderState::Stored { left } => {
                    let take = input.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    if take == 0 {
                        return Ok(());
                    }
                    let (plain, rest) = input.split_at(take);
                    input = rest;
                    self.compressed += take as u64;
                    self.give(plain, out)?;
                    self.state = DecoderState::Stored { left: left - take as u64 };
                }
                DecoderState::Doubtful { size } => {
                    if !self.gather(size + MAGIC_BYTES, &mut input) {
                        return Ok(());
                    }
                    let mut start = 0;
                    if !is_magic(four(&self.pending[size..])) {
                        start = 4;
                        if !self.gather(start + size + MAGIC_BYTES, &mut input) {
                            return Ok(());
                        }
                        if !is_magic(four(&self.pending[start + size..])) {
                            let found = self.pending[size..][..MAGIC_BYTES].to_vec();
                            return Err(self.bad(DecodeFault::UnknownBlock { found }));
                        }
                    }
                    let gathered = std::mem::take(&mut self.pending);
                    let (plain, next) = gathered[start..].split_at(size);
                    self.give(plain, out)?;
                    self.state = DecoderState::Header;
                    self.take_back(four(next), out)?;
                }
            }
        }
    }

    fn begin_compressed(&mut self, decoded: usize, encoded: usize) -> Result<(), DecodeError> {
        self.expect_room_for(decoded)?;
        if decoded > MAX_BLOCK_BYTES {
            return Err(self.bad(DecodeFault::BlockTooLarge { size: decoded }));
        }
        // One byte of an LZ4 block adds 255 bytes at most. A sequence with a match is never longer than its content,
        // except for the bytes that count its literals, one for each 255.
        let most_encoded = decoded + decoded / 255 + 16;
        if encoded > most_encoded || decoded > encoded * 255 {
            return Err(self.bad(DecodeFault::ImpossibleSizes { encoded, decoded }));
        }
        self.state = DecoderState::Compressed { decoded, encoded };
        Ok(())
    }

    fn begin_stored(&mut self, first: [u8; 4], second: [u8; 4], out: &mut Out) -> Result<(), DecodeError> {
        let size = size(first);
        self.expect_room_for(size)?;
        // A larger block is not held back: it is read as in the current format.
        if first == second && size <= MAX_BLOCK_BYTES {
            self.pending.extend_from_slice(&second);
            self.state = DecoderState::Doubtful { size };
            Ok(())
        } else {
            self.state = DecoderState::Stored { left: size as u64 };
            self.take_back(second, out)
        }
    }

    fn expect_room_for(&self, size: usize) -> Result<(), DecodeError> {
        let (size, left) = (size as u64, self.expected - self.uncompressed);
        if size > left { Err(self.bad(DecodeFault::MoreThanExpected { size, left })) } else { Ok(()) }
    }

    /// Processes held-back bytes again.
    fn take_back(&mut self, seen: [u8; 4], out: &mut Out) -> Result<(), DecodeError> {
        self.compressed -= seen.len() as u64;
        // Terminates: four bytes are at most the start of a header, or a marker.
        self.run(&seen, out)
    }

    /// Moves bytes to `pending` until it has `length`. False: more have to arrive.
    fn gather(&mut self, length: usize, input: &mut &[u8]) -> bool {
        let (had, missing) = (self.pending.len(), length.saturating_sub(self.pending.len()));
        let (taken, rest) = input.split_at(missing.min(input.len()));
        let needed = had + taken.len();
        if needed > self.pending.capacity() {
            // Grows with the received bytes, and not beyond the needed size.
            let capacity = needed.max((2 * had).min(length));
            self.pending.reserve_exact(capacity - had);
        }
        self.pending.extend_from_slice(taken);
        self.compressed += taken.len() as u64;
        *input = rest;
        needed >= length
    }

    fn reuse(&mut self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.pending = buffer;
    }

    fn decompress(&mut self, payload: &[u8], decoded: usize, out: &mut Out) -> Result<(), DecodeError> {
        let fault = match self.window.decode(payload, decoded) {
            Ok(plain) if plain.len() == decoded => {
                if decoded > 0 {
                    out(plain).map_err(DecodeError::Write)?;
                    self.uncompressed += decoded as u64;
                }
                return Ok(());
            }
            Ok(plain) => DecodeFault::WrongSize { claimed: decoded, found: plain.len() },
            Err(source) => DecodeFault::Block { encoded: payload.len(), decoded, source },
        };
        Err(self.bad(fault))
    }

    fn give(&mut self, plain: &[u8], out: &mut Out) -> Result<(), DecodeError> {
        if !plain.is_empty() {
            out(plain).map_err(DecodeError::Write)?;
            self.uncompressed += plain.len() as u64;
            self.window.remember(plain);
        }
        Ok(())
    }

    fn bad(&self, fault: DecodeFault) -> DecodeError {
        self.bad_at(self.block_start, fault)
    }

    fn bad_at(&self, compressed: u64, fault: DecodeFault) -> DecodeError {
        DecodeError::Bad { compressed, uncompressed: self.uncompressed, fault }
    }

    #[cfg(test)]
    pub(super) fn memory(&self) -> usize {
        self.pending.capacity() + self.window.memory()
    }
}

fn four(bytes: &[u8]) -> [u8; 4] {
    bytes[..4].try_into().expect("callers have four bytes")
}

fn size(word: [u8; 4]) -> usize {
    u32::from_le_bytes(word) as usize
}

fn is_magic(word: [u8; 4]) -> bool {
    [COMPRESSED, STORED, END].contains(&word)
}
