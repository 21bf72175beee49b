//! Writes to standard output and standard error.

use std::io::{self, IsTerminal, Write};

use anstream::{AutoStream, ColorChoice, stream::RawStream};
use anstyle::{AnsiColor, Style};
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
    let label =
        if wants_colour(&io::stderr()) { styled("error:", Colour::Red.style().bold()) } else { "error:".into() };
    note(&format!("{label} {text}"));
}

pub(super) fn error_json(value: &Value) {
    note(&value.to_string());
}

/// For all of what follows. `auto`: as NO_COLOR, CLICOLOR, CLICOLOR_FORCE, TERM and the terminal say.
pub(super) fn set_colour(choice: clap::ColorChoice) {
    match choice {
        clap::ColorChoice::Auto => ColorChoice::Auto,
        clap::ColorChoice::Always => ColorChoice::Always,
        clap::ColorChoice::Never => ColorChoice::Never,
    }
    .write_global();
}

fn wants_colour(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// Whether standard error is a terminal.
pub(super) fn notes_are_seen() -> bool {
    io::stderr().is_terminal()
}

/// The template of a progress bar, which is drawn on standard error.
pub(super) fn bar_template(coloured: &'static str, plain: &'static str) -> &'static str {
    if wants_colour(&io::stderr()) { coloured } else { plain }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Green,
    Yellow,
    Red,
    Dim,
}

impl Colour {
    fn style(self) -> Style {
        let colour = |colour: AnsiColor| Style::new().fg_color(Some(colour.into()));
        match self {
            Colour::Green => colour(AnsiColor::Green),
            Colour::Yellow => colour(AnsiColor::Yellow),
            Colour::Red => colour(AnsiColor::Red),
            Colour::Dim => Style::new().dimmed(),
        }
    }
}

fn styled(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// The text in this colour, if standard output is to have colours.
pub(super) fn paint(text: &str, colour: Colour) -> String {
    if wants_colour(&io::stdout()) { styled(text, colour.style()) } else { text.to_owned() }
}

pub(super) fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Lines of the terminal.
pub(super) fn height() -> usize {
    match rustix::termios::tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 => usize::from(size.ws_row),
        _ => 24,
    }
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
