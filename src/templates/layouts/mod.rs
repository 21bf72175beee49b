//! Templates in the layouts of other programs.

pub mod payload;
