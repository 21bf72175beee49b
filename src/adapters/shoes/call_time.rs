//! How much time a call has: the host sends it with each call, less what it has spent already.

use std::time::Duration;

use tokio::time::Instant;

use crate::platform::clock;

/// What myshoes gives an AddInstance; for hosts that set no deadline.
const USUAL: Duration = Duration::from_secs(300);
/// More than any host waits. Keeps the arithmetic of instants within its range.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The host needs this much to receive the answer.
const FOR_THE_ANSWER: Duration = Duration::from_secs(10);
/// A vm that gets its slot later would hardly be up before the answer is due.
const FOR_THE_BOOT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug)]
pub(super) struct CallTime {
    started: Instant,
    length: Duration,
}

impl CallTime {
    /// Of the header `grpc-timeout`. What cannot be read counts as not set.
    pub fn of(header: Option<&str>) -> Self {
        let length = header.and_then(parse).unwrap_or(USUAL).min(LONGEST);
        Self { started: clock::monotonic(), length }
    }

    /// When the host gives up.
    pub fn end(self) -> Instant {
        self.started + self.length
    }

    /// When the answer has to be sent at the latest.
    pub fn answer_by(self) -> Instant {
        self.end() - FOR_THE_ANSWER.min(self.length / 10)
    }

    /// How long a vm may wait for its slot from now on, in seconds.
    pub fn longest_wait(self) -> u64 {
        let latest = self.end() - FOR_THE_BOOT.min(self.length / 5);
        latest.saturating_duration_since(clock::monotonic()).as_secs()
    }
}

/// 1 to 8 digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_units_are_read() {
        for (text, milliseconds) in [
            ("299839m", 299_839),
            ("51144743u", 51_144),
            ("5000000n", 5),
            ("3S", 3000),
            ("2M", 120_000),
            ("1H", 3_600_000),
            ("99999999H", 99_999_999 * 3_600_000),
        ] {
            assert_eq!(parse(text).unwrap().as_millis(), milliseconds, "{text}");
        }
        for text in ["", "m", "5", "5x", "-5S", "5.0S", "999999999m", "5µ", "5 S"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_vm_waits_for_four_of_five_minutes() {
        // Time passes between two looks at the clock.
        for (header, seconds) in [(Some("299839m"), 239_u64), (None, 240), (Some("5S"), 4), (Some("0S"), 0)] {
            let wait = CallTime::of(header).longest_wait();
            assert!((seconds.saturating_sub(2)..=seconds).contains(&wait), "{header:?}: {wait}");
        }
        let time = CallTime::of(Some("299839m"));
        assert_eq!(time.end() - time.answer_by(), FOR_THE_ANSWER);
        assert_eq!(CallTime::of(Some("99999999H")).length, LONGEST);
    }
}
