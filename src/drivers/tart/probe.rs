//! Versions of Tart and of macOS.

use std::{fmt, path::Path, time::Duration};

use crate::{drivers::failure::shown, platform::process::Command};

const DEADLINE: Duration = Duration::from_secs(10);

/// The oldest Tart that this driver supports.
pub const OLDEST: Version = Version { major: 2, minor: 32 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl Version {
    /// `2.32.1`, `26.0`, `14`.
    fn parse(text: &str) -> Option<Version> {
        let mut numbers = text.split('.').map(|n| n.parse().ok().filter(|_| n.bytes().all(|b| b.is_ascii_digit())));
        let version = Version { major: numbers.next()??, minor: numbers.next().unwrap_or(Some(0))? };
        numbers.all(|n: Option<u32>| n.is_some()).then_some(version)
    }
}

/// The line with the version, if there is one. Newer versions of Tart print warnings on lines of their own.
pub fn version_line(output: &str) -> &str {
    let is_version = |line: &&str| *line == "SNAPSHOT" || Version::parse(line).is_some();
    output.lines().map(str::trim).find(is_version).unwrap_or_else(|| output.trim())
}

/// The version in the output of `tart --version`, or why it is not usable. A build from source prints `SNAPSHOT` and
/// is accepted.
pub fn tart(output: &[u8]) -> Result<String, String> {
    let text = version_line(&String::from_utf8_lossy(output)).to_owned();
    if text == "SNAPSHOT" {
        return Ok(text);
    }
    match Version::parse(&text) {
        None => Err(format!("expected `tart --version` to print a version like {OLDEST}.0; found: {}", shown(output))),
        Some(version) if version < OLDEST => {
            Err(format!("Tart {text} is too old: this needs {OLDEST} or later; update it with `brew upgrade tart`"))
        }
        Some(_) => Ok(text),
    }
}

/// The version of macOS, or `None` on another system.
pub async fn macos(sw_vers: &Path) -> Result<Option<Version>, String> {
    if !sw_vers.exists() {
        return Ok(None);
    }
    let output =
        Command::new(sw_vers, DEADLINE).arg("-productVersion").run().await.map_err(|error| error.to_string())?;
    let text = output.stdout_text();
    match Version::parse(text.trim()) {
        Some(version) if output.status.success() => Ok(Some(version)),
        _ => Err(format!(
            "expected `sw_vers -productVersion` to print a version like 15.1; found: {}",
            shown(&output.stdout)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_unknown_versions_are_refused() {
        for good in ["2.32.0\n", "2.32.1", "2.35.0\n", "3.0", "SNAPSHOT\n"] {
            assert_eq!(tart(good.as_bytes()).as_deref(), Ok(good.trim()));
        }
        assert_eq!(tart(b"warning: something is old\n2.36.0\n").as_deref(), Ok("2.36.0"));
        assert_eq!(
            tart(b"2.31.0\n").unwrap_err(),
            "Tart 2.31.0 is too old: this needs 2.32 or later; update it with `brew upgrade tart`"
        );
        assert!(tart(b"1.99.9").unwrap_err().starts_with("Tart 1.99.9 is too old"));
        for strange in ["", "tart 2.32.1", "2.x", "-2.33", "2.33.0-beta"] {
            assert!(tart(strange.as_bytes()).unwrap_err().contains("; found: "), "{strange}");
        }
        assert!(tart(&[b'x'; 5000]).unwrap_err().len() < 400);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(Version::parse("26.0.1") > Version::parse("15.7"));
        assert!(Version::parse("2.100") > Version::parse("2.32"));
        assert_eq!(Version::parse("14"), Some(Version { major: 14, minor: 0 }));
    }
}
