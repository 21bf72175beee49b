//! LZ4 in Apple's framing: what the disk layers of Tart's format are made of.
//!
//! ```text
//! stream  block… bv4$                                             what follows the marker is nobody's
//! block   bv41  u32 decoded size  u32 encoded size  payload       one raw LZ4 block
//!         bv4-  u32 size          plain bytes                     what would not become smaller
//! ```
//!
//! Integers are little-endian. A match in an LZ4 block may reach 64 KiB back, across the blocks before it, whichever kind they
//! are. There is no checksum: a stream that decodes is well formed and nothing more, and the layer's digests have to be
//! checked by whoever knows them.
//!
//! ```text
//! decode   a stream that arrives in pieces, in bounded memory
//!   window what has been decoded last, for matches that reach back
//! encode   plain bytes into independent blocks
//! ```

mod decode;
mod encode;
mod window;

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

pub use decode::{DecodeError, DecodeFault, Decoder};
pub use encode::{Encoded, encode};

/// The largest compressed block that is decoded, by its decoded size. Apple names no limit and is not known to write more than
/// 64 KiB. This bounds what a decoder holds: one block and what it decodes to.
pub const MAX_BLOCK_BYTES: usize = 8 << 20;

const COMPRESSED: [u8; 4] = *b"bv41";
const STORED: [u8; 4] = *b"bv4-";
const END: [u8; 4] = *b"bv4$";

/// As far back as a match of LZ4 can reach, rounded up from 65,535.
const REACH: usize = 64 << 10;
