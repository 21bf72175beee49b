//! Bounds output of guests and makes it printable for logs.

use std::fmt::{Display, Write as _};

const MOST: usize = 64 << 10;
const TAIL: usize = 2 << 10;

/// The output of a command in the guest; only its end if it is long.
#[derive(Debug, Default)]
pub(super) struct TailBuffer(Vec<u8>);

impl TailBuffer {
    pub fn push(&mut self, piece: &[u8]) {
        self.0.extend_from_slice(piece);
        if self.0.len() > 2 * MOST {
            self.0.drain(..self.0.len() - MOST);
        }
    }

    /// Removes and returns what follows the last `mark`, if it is within the last `within` bytes.
    pub fn split_off(&mut self, mark: &[u8], within: usize) -> Option<Vec<u8>> {
        let from = self.0.len().saturating_sub(within);
        let at = self.0[from..].windows(mark.len()).rposition(|w| w == mark)?;
        let after = self.0[from + at + mark.len()..].to_vec();
        self.0.truncate(from + at);
        Some(after)
    }

    pub fn into_bytes(mut self) -> Vec<u8> {
        self.0.drain(..self.0.len().saturating_sub(MOST));
        self.0
    }

    /// Only for the log, because the guest controls it.
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.0[self.0.len().saturating_sub(TAIL)..]).into_owned()
    }
}

/// Errors of libraries may be long and have many lines.
pub(super) fn one_line(e: &dyn Display) -> String {
    let mut text = String::new();
    let _ = write!(text, "{e}");
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect()
}

/// The last line of a guest's output that says something, for people.
pub fn last_line(output: &str) -> Option<String> {
    let line = output.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(one_line(&line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_words_are_one_plain_line() {
        assert_eq!(last_line("a\nno \u{1b}[1muser\r\n \n").as_deref(), Some("no  [1muser"));
        assert_eq!(last_line(" \n"), None);
        assert_eq!(last_line(&"x".repeat(5000)).unwrap().len(), 200);
    }

    #[test]
    fn the_end_is_kept_and_memory_is_bounded() {
        let mut output = TailBuffer::default();
        for n in 0..200_u32 {
            output.push(format!("{n:04}").repeat(1000).as_bytes());
            assert!(output.0.len() <= 2 * MOST);
        }
        assert!(output.tail().ends_with("01990199") && output.tail().len() == TAIL);
        let bytes = output.into_bytes();
        assert!(bytes.len() == MOST && bytes.ends_with(b"0199"));
    }

    #[test]
    fn a_mark_is_found_at_the_end_only() {
        let mut output = TailBuffer::default();
        output.push(b"log\nMARK 1\nmore");
        assert_eq!(output.split_off(b"\nMARK ", 5), None);
        assert_eq!(output.split_off(b"\nMARK ", 100).as_deref(), Some(&b"1\nmore"[..]));
        assert_eq!(output.into_bytes(), b"log");
        assert_eq!(TailBuffer::default().split_off(b"\nMARK ", 100), None);
    }

    #[test]
    fn foreign_errors_become_one_short_line() {
        assert_eq!(one_line(&"a\r\nb\u{1b}[1m"), "a  b [1m");
        assert_eq!(one_line(&"x".repeat(999)).len(), 200);
    }
}
