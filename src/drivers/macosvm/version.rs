//! Versions of macosvm, and what each of them supports.

use std::fmt;

use crate::drivers::failure::shown;

/// The oldest supported version. Earlier ones read the description after the options.
pub const OLDEST: MacosvmVersion = MacosvmVersion { major: 0, minor: 2, patch: 0 };
const PID_FILE: MacosvmVersion = MacosvmVersion { major: 0, minor: 2, patch: 3 };
/// The capability of a build that runs macOS guests.
const RUNS_MACOS: &str = "macOS guest";

/// `0.2-3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacosvmVersion {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl fmt::Display for MacosvmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}-{}", self.major, self.minor, self.patch)
    }
}

impl MacosvmVersion {
    fn parse(text: &str) -> Option<Self> {
        let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
        let (release, patch) = text.split_once('-')?;
        let (major, minor) = release.split_once('.')?;
        Some(Self { major: number(major)?, minor: number(minor)?, patch: number(patch)? })
    }

    /// An older version ignores the option and takes its value for the description.
    pub fn has_pid_file(self) -> bool {
        self >= PID_FILE
    }
}

/// The version in the output of `macosvm --version`, or why it is not usable.
pub fn usable(output: &[u8]) -> Result<MacosvmVersion, String> {
    let text = String::from_utf8_lossy(output);
    let version = text.lines().find_map(|line| MacosvmVersion::parse(line.trim().strip_prefix("macosvm ")?));
    let Some(version) = version else {
        return Err(format!(
            "expected `macosvm --version` to print a version like macosvm 0.2-3; found: {}",
            shown(output)
        ));
    };
    if version < OLDEST {
        return Err(format!("macosvm {version} is too old: this needs {OLDEST} or later"));
    }
    let capabilities = text.lines().find_map(|line| line.trim().strip_prefix("Capabilities:"));
    if let Some(capabilities) = capabilities
        && !capabilities.split(',').any(|capability| capability.trim() == RUNS_MACOS)
    {
        return Err(format!(
            "this build of macosvm runs no macOS guests, which need Apple Silicon and macOS 12; it says: {}",
            shown(capabilities.trim().as_bytes())
        ));
    }
    Ok(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "macosvm 0.2-3\n\nCopyright (C) 2021-2025\nThere is NO WARRANTY.\n\n\
                        Capabilities: macOS guest, vol, vol:automount, net:unix:mtu, usb\n";

    #[test]
    fn versions_are_read_and_compared_as_numbers() {
        let version = usable(SAID.as_bytes()).unwrap();
        assert_eq!((version.to_string().as_str(), version.has_pid_file()), ("0.2-3", true));
        let at = |text: &str| usable(SAID.replace("0.2-3", text).as_bytes());
        assert!(!at("0.2-2").unwrap().has_pid_file());
        assert!(at("0.2-10").unwrap().has_pid_file());
        assert!(at("0.10-0").unwrap().has_pid_file());
        assert_eq!(at("0.1-4").unwrap_err(), "macosvm 0.1-4 is too old: this needs 0.2-0 or later");
        assert!(at("0.2").unwrap_err().contains("; found: "));
        assert!(usable(b"").unwrap_err().contains("; found: "));
        assert!(usable(&[b'x'; 5000]).unwrap_err().len() < 400);
    }

    #[test]
    fn a_build_for_another_mac_is_refused() {
        let linux = SAID.replace("macOS guest, ", "");
        assert!(usable(linux.as_bytes()).unwrap_err().contains("runs no macOS guests"));
        let (silent, _) = SAID.split_once("Capabilities").unwrap();
        usable(silent.as_bytes()).unwrap();
    }
}
