//! LZ4 in Apple's framing, the format of disk layers in Tart's images.
//!
//! ```text
//! stream  block… bv4$                                             data after the marker is ignored
//! block   bv41  u32 decoded size  u32 encoded size  payload       one raw LZ4 block
//!         bv4-  u32 size          plain bytes                     data that cannot be compressed
//! ```
//!
//! Integers are little-endian. A match in an LZ4 block may reach 64 KiB back across preceding blocks of any kind.
//! There is no checksum: a stream that decodes is well formed and nothing more, so the caller has to check the
//! layer's digests.
//!
//! ```text
//! decode   a stream that arrives in pieces, in bounded memory
//!   window the last decoded bytes, for matches that reach back
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

/// The largest compressed block that is decoded, by its decoded size. Apple documents no limit and is not known to
/// write more than 64 KiB. This bounds the memory of a decoder: one block and its content.
pub const MAX_BLOCK_BYTES: usize = 8 << 20;

const COMPRESSED: [u8; 4] = *b"bv41";
const STORED: [u8; 4] = *b"bv4-";
const END: [u8; 4] = *b"bv4$";

/// The longest distance of a match in LZ4, rounded up from 65,535.
const REACH: usize = 64 << 10;
