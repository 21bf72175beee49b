//! Formats text: durations, ages, sizes, fields. Removes control characters from untrusted text.

use jiff::{SignedDuration, Timestamp};

use crate::platform::clock;

/// The values of `--network`.
pub(super) const NETWORK_MODES: [&str; 3] = ["isolated", "internet", "host"];

/// Cut to this many characters, with a mark.
pub(super) fn shorten(text: &str, to: usize) -> String {
    if text.chars().count() <= to {
        return text.to_owned();
    }
    text.chars().take(to.saturating_sub(1)).chain(['…']).collect()
}

/// Removes terminal control characters from text of unknown origin.
pub(super) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// `3.9 s`, `2m05s`, `3h02m`, `4d03h`.
pub(super) fn duration(d: SignedDuration) -> String {
    let seconds = d.as_secs().max(0);
    match seconds {
        0..60 => format!("{:.1} s", d.as_secs_f64().max(0.0)),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// `12s`, `5m`, `3h`, `4d`: how long ago.
pub(super) fn age(since: Timestamp) -> String {
    coarse(clock::now().duration_since(since))
}

/// `12s`, `5m`, `3h`, `4d`: in what time.
pub(super) fn until(at: Timestamp) -> String {
    coarse(at.duration_since(clock::now()))
}

fn coarse(time: SignedDuration) -> String {
    let seconds = time.as_secs().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// To the second; the JSON output has more digits.
pub(super) fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

pub(super) fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    #[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
    let mut value = n as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{n} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// Seconds, or a duration such as `90s`, `5m` or `1h30m`.
pub(super) fn parse_seconds(text: &str) -> Result<u32, String> {
    let wrong = || "expected seconds or a duration such as 90s, 5m or 1h30m".to_owned();
    if let Ok(seconds) = text.parse::<u32>() {
        return Ok(seconds);
    }
    let parsed: SignedDuration = text.parse().map_err(|_| wrong())?;
    u32::try_from(parsed.as_secs()).map_err(|_| wrong())
}

/// A time such as `2027-01-31T12:00:00Z`, or how long ago, such as `90s`, `2h` or `3d`.
pub(super) fn parse_since(text: &str) -> Result<Timestamp, String> {
    parse_time(text, |now, time| now.checked_sub(time))
}

/// A time, or in how long.
pub(super) fn parse_until(text: &str) -> Result<Timestamp, String> {
    parse_time(text, |now, time| now.checked_add(time))
}

fn parse_time(
    text: &str,
    from: impl FnOnce(Timestamp, SignedDuration) -> Result<Timestamp, jiff::Error>,
) -> Result<Timestamp, String> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wrong = || "expected a time such as 2027-01-31T12:00:00Z, or a duration such as 12h or 30d".to_owned();
    let seconds = parse_long_seconds(text).map_err(|_| wrong())?;
    let time = SignedDuration::from_secs(i64::try_from(seconds).map_err(|_| wrong())?);
    from(clock::now(), time).map_err(|_| "that is too long".to_owned())
}

/// The same for longer times: also days, such as `7d`.
pub(super) fn parse_long_seconds(text: &str) -> Result<u64, String> {
    let days = text.strip_suffix('d').and_then(|n| n.parse::<u64>().ok());
    match days {
        Some(days) => days.checked_mul(86_400).ok_or_else(|| "that is too long".to_owned()),
        None => parse_seconds(text).map(u64::from),
    }
}

/// Bytes, or a size such as `512MiB`.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || "expected bytes or a size such as 512MiB, 100GiB or 1TiB".to_owned();
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim() {
        "" | "B" => 0,
        "KiB" | "K" => 10,
        "MiB" | "M" => 20,
        "GiB" | "G" => 30,
        "TiB" | "T" => 40,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(wrong)
}

/// Lines `name   value`, values aligned.
pub(super) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in pairs {
        let line = format!("{name:width$}  {}", plain(value));
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Lines of at most `width` characters, broken at blanks. A longer word has a line of its own.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

/// The same as `fields`, with long values folded at blanks where there is a width to keep.
pub(super) fn folded(pairs: &[(&str, String)], width: Option<usize>) -> String {
    let Some(width) = width else { return fields(pairs) };
    let names = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 2;
    let room = width.saturating_sub(names).max(20);
    let lines = pairs.iter().flat_map(|(name, value)| {
        let lines = wrap(&plain(value), room).into_iter().enumerate();
        lines.map(|(n, line)| (if n == 0 { *name } else { "" }, line))
    });
    fields(&lines.collect::<Vec<_>>())
}

/// Removes terminal control from a stream of text: whole escape sequences, and other control characters.
#[derive(Default)]
pub(super) struct ControlFilter {
    state: Escape,
}

#[derive(Default, Clone, Copy, PartialEq)]
enum Escape {
    #[default]
    Text,
    /// After ESC.
    Begun,
    /// In a control sequence, up to its final byte.
    Sequence,
    /// In a string (title, link, …), up to BEL or ESC \.
    String,
    /// After the first byte of what may be a control character beyond ASCII, as UTF-8 writes it.
    Beyond,
}

impl ControlFilter {
    pub fn filter(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for &byte in bytes {
            self.state = match (self.state, byte) {
                (Escape::Text, 0x1b) => Escape::Begun,
                (Escape::Text, b'\n' | b'\t') => {
                    kept.push(byte);
                    Escape::Text
                }
                (Escape::Text, 0..0x20 | 0x7f) => Escape::Text,
                (Escape::Text, 0xc2) => Escape::Beyond,
                (Escape::Beyond, 0x80..0xa0) => Escape::Text,
                (Escape::Beyond, _) => {
                    kept.extend([0xc2, byte]);
                    Escape::Text
                }
                (Escape::Text, _) => {
                    kept.push(byte);
                    Escape::Text
                }
                (Escape::Begun, b'[') => Escape::Sequence,
                (Escape::Begun, b']' | b'P' | b'X' | b'^' | b'_') => Escape::String,
                // ESC ( B and the like: intermediate bytes, then one final byte.
                (Escape::Begun, 0x20..0x30) => Escape::Begun,
                (Escape::Begun, _) => Escape::Text,
                // A newline cannot be part of one: it was cut off.
                (Escape::Sequence, b'\n') => {
                    kept.push(byte);
                    Escape::Text
                }
                (Escape::Sequence, 0x40..=0x7e) => Escape::Text,
                (Escape::Sequence, _) => Escape::Sequence,
                (Escape::String, 0x07) => Escape::Text,
                (Escape::String, 0x1b) => Escape::Begun,
                (Escape::String, b'\n') => {
                    kept.push(byte);
                    Escape::Text
                }
                (Escape::String, _) => Escape::String,
            };
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_seconds_or_durations() {
        assert_eq!(parse_seconds("0"), Ok(0));
        assert_eq!(parse_seconds("90"), Ok(90));
        assert_eq!(parse_seconds("90s"), Ok(90));
        assert_eq!(parse_seconds("1h30m"), Ok(5400));
        for wrong in ["", "-1", "soon", "5 parsecs"] {
            assert!(parse_seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_and_ages_are_read() {
        for (given, bytes) in [("0", 0), ("17", 17), ("3B", 3), ("2KiB", 2048), ("1 GiB", 1 << 30), ("2T", 2 << 40)] {
            assert_eq!(parse_size(given), Ok(bytes), "{given}");
        }
        for given in ["", "GiB", "1.5GiB", "-1", "1XB", "99999999TiB", "1 GB"] {
            assert!(parse_size(given).is_err(), "{given}");
        }
        assert_eq!(
            (parse_long_seconds("7d"), parse_long_seconds("90"), parse_long_seconds("1h")),
            (Ok(604_800), Ok(90), Ok(3600))
        );
        assert!(parse_long_seconds("soon").is_err() && parse_long_seconds("99999999999999999d").is_err());
    }

    #[test]
    fn words_are_never_broken() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("a verylongword b", 4), ["a", "verylongword", "b"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn long_values_are_folded_under_their_beginning() {
        let pairs = [("labels", "self-hosted, macos, arm64, xcode-26".to_owned()), ("vms", "2".to_owned())];
        let folded = "labels  self-hosted, macos,\n        arm64, xcode-26\nvms     2\n";
        assert_eq!(folded_at(&pairs, 30), folded);
        assert_eq!(folded_at(&pairs, 80).lines().count(), 2);
    }

    fn folded_at(pairs: &[(&str, String)], width: usize) -> String {
        folded(pairs, Some(width))
    }

    #[test]
    fn durations_keep_their_width() {
        assert_eq!(duration(SignedDuration::from_millis(3940)), "3.9 s");
        assert_eq!(duration(SignedDuration::from_secs(125)), "2m05s");
        assert_eq!(duration(SignedDuration::from_secs(3 * 3600 + 120)), "3h02m");
        assert_eq!(duration(SignedDuration::from_secs(-1)), "0.0 s");
    }

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        let mut filter = ControlFilter::default();
        let mut shown = filter.filter(b"\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x1b\\link\x1b[");
        shown.extend(filter.filter(b"2J\r\nend \x1b(Bx\x08\xc2\x9b \xc2\xb5\n"));
        assert_eq!(String::from_utf8(shown).unwrap(), "red  link\nend x µ\n");
        assert_eq!(plain("a\x1b[31mb"), "a\u{fffd}[31mb");
    }
}
