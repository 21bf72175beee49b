//! Encodes into independent blocks of 64 KiB.
//!
//! The same bytes always give the same stream, so that a layer that is pushed twice is one blob. (Another version of
//! the LZ4 library may find other matches.)

use std::io::{self, ErrorKind, Read, Write};

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::{COMPRESSED, END, STORED};

/// Apple's own blocks are not known to be larger, and other decoders may depend on that.
const BLOCK_BYTES: usize = 64 << 10;

const COMPRESSED_HEADER: usize = 12;
const STORED_HEADER: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Encoded {
    pub compressed: u64,
    pub uncompressed: u64,
}

/// Encodes all of `input` as one stream, and flushes `output`.
pub fn encode(mut input: impl Read, mut output: impl Write) -> io::Result<Encoded> {
    // Each buffer has space for its header in front, so that a block is one write.
    let mut stored = vec![0; STORED_HEADER + BLOCK_BYTES];
    let mut compressed = vec![0; COMPRESSED_HEADER + get_maximum_output_size(BLOCK_BYTES)];
    let mut table = CompressTable::large();
    let mut sum = Encoded { compressed: 0, uncompressed: 0 };
    loop {
        let size = fill(&mut input, &mut stored[STORED_HEADER..])?;
        if size == 0 {
            break;
        }
        let plain = &stored[STORED_HEADER..][..size];
        let encoded = compress_into_with_table(plain, &mut compressed[COMPRESSED_HEADER..], &mut table)
            .expect("the buffer has the length that every block fits in");
        let block = if COMPRESSED_HEADER + encoded < STORED_HEADER + size {
            compressed[..4].copy_from_slice(&COMPRESSED);
            compressed[4..8].copy_from_slice(&word(size));
            compressed[8..12].copy_from_slice(&word(encoded));
            &compressed[..COMPRESSED_HEADER + encoded]
        } else {
            stored[..4].copy_from_slice(&STORED);
            stored[4..8].copy_from_slice(&word(size));
            &stored[..STORED_HEADER + size]
        };
        output.write_all(block)?;
        sum.compressed += block.len() as u64;
        sum.uncompressed += size as u64;
    }
    output.write_all(&END)?;
    sum.compressed += END.len() as u64;
    output.flush()?;
    Ok(sum)
}

/// Fills `buffer` as far as there is input, so that blocks do not depend on the sizes of reads.
fn fill(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

fn word(size: usize) -> [u8; 4] {
    u32::try_from(size).expect("a block is 64 KiB at most").to_le_bytes()
}
