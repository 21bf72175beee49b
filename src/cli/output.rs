//! Writes to standard output and standard error.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use super::failure::CommandFailure;

fn closed(error: io::Error) -> CommandFailure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CommandFailure::OutputClosed,
        _ => CommandFailure::Other(format!("cannot write the output: {error}")),
    }
}

pub(super) fn bytes(bytes: &[u8]) -> Result<(), CommandFailure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(closed)
}

pub(super) fn line(text: &str) -> Result<(), CommandFailure> {
    bytes(format!("{text}\n").as_bytes())
}

/// One JSON document.
pub(super) fn json(value: &Value) -> Result<(), CommandFailure> {
    line(&format!("{value:#}"))
}

/// One JSON document on one line, where several may follow.
pub(super) fn json_line(value: &Value) -> Result<(), CommandFailure> {
    line(&value.to_string())
}

/// Errors are ignored: standard error may be closed.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

pub(super) fn error(text: &str) {
    let colour = io::stderr().is_terminal() && wants_colour();
    note(&format!("{} {text}", if colour { "\u{1b}[1;31merror:\u{1b}[0m" } else { "error:" }));
}

pub(super) fn error_json(value: &Value) {
    note(&value.to_string());
}

fn wants_colour() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

#[derive(Clone, Copy)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
    Dim,
}

/// The text in this colour, if colours are enabled.
pub(super) fn paint(text: &str, colour: Colour) -> String {
    if !(is_terminal() && wants_colour()) {
        return text.to_owned();
    }
    let code = match colour {
        Colour::Green => "32",
        Colour::Yellow => "33",
        Colour::Red => "31",
        Colour::Dim => "2",
    };
    format!("\u{1b}[{code}m{text}\u{1b}[0m")
}

pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Columns of the terminal; `None` if the output is not a terminal and lines must not be cut.
pub(super) fn width() -> Option<usize> {
    if !is_terminal() {
        return None;
    }
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_col > 0 => Some(usize::from(size.ws_col)),
        _ => Some(80),
    }
}
