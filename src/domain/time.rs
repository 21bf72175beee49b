//! Times in answers of the API: RFC 3339, UTC, always with milliseconds, so that equal times are equal texts.

use jiff::Timestamp;
use serde::Serializer;

/// For `#[serde(serialize_with)]`. Jiff alone leaves trailing zeros out.
pub fn with_milliseconds<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{at:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trailing_zeros_are_written() {
        let written = |at: &str| {
            let mut out = Vec::new();
            with_milliseconds(&at.parse().unwrap(), &mut serde_json::Serializer::new(&mut out)).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written("2026-11-20T09:00:00.45Z"), "\"2026-11-20T09:00:00.450Z\"");
        assert_eq!(written("2026-11-20T09:00:00Z"), "\"2026-11-20T09:00:00.000Z\"");
    }
}
