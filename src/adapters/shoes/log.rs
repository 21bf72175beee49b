//! What the host writes to its own log, each line twice.

use std::io::{self, Write};

/// In the form from which go-plugin takes the level of a line. Errors are ignored: standard error may be closed.
pub(super) fn note(level: &str, text: &str) {
    let _ = writeln!(io::stderr().lock(), "[{level}] {text}");
}
