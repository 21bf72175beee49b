//! LZ4 in Apple's framing.
