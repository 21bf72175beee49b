//! Whether a QEMU is new enough.

/// Earlier versions cannot pass a guest's network through a socket (`-netdev stream`).
const LEAST: (u32, u32) = (7, 2);

/// `version`: the first line of `--version`, or the part of it behind `QEMU emulator version`. A version that cannot be read is
/// not known to be too old.
pub fn check(version: &str) -> Result<(), String> {
    let numbers = version.strip_prefix("QEMU emulator version ").unwrap_or(version);
    let mut numbers = numbers.split(['.', ' ']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < LEAST => {
            let (least_major, least_minor) = LEAST;
            Err(format!(
                "QEMU {major}.{minor} is too old: install {least_major}.{least_minor} or later (Debian 12, Ubuntu 24.04)"
            ))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for old in ["QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6.22)", "7.1.9", "5.10"] {
            assert!(check(old).unwrap_err().contains("is too old: install 7.2 or later"), "{old}");
        }
        for new in ["QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)", "10.0.2", "8.0", "unknown", ""] {
            assert_eq!(check(new), Ok(()), "{new}");
        }
    }
}
