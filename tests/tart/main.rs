//! Plays `tart` on any system, for tests.

fn main() {}
