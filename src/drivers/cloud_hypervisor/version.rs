//! Whether a Cloud Hypervisor is new enough.

/// Earlier versions cannot use an overlay on a template's disk.
const LEAST: u32 = 34;

/// The version in the output of `--version`, as in `cloud-hypervisor v54.0.0`. A version that cannot be read (a build from a branch) is
/// not known to be too old. `Err`: another program, or a version that is too old.
pub fn check(output: &str) -> Result<String, String> {
    let line = output.lines().next().unwrap_or_default().trim();
    let Some(version) = line.strip_prefix("cloud-hypervisor ") else {
        return Err("it does not say its version: it may be broken, or another program".to_owned());
    };
    let numbers = version.trim_start_matches('v');
    let major = numbers.split(['.', '-']).next().and_then(|number| number.parse::<u32>().ok());
    match major {
        Some(major) if major < LEAST => {
            Err(format!("Cloud Hypervisor {version} is too old: install v{LEAST} or later"))
        }
        _ => Ok(line.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        for good in [
            "cloud-hypervisor v54.0.0\n",
            "cloud-hypervisor v34.0",
            "cloud-hypervisor v100.1-3-gabc",
            "cloud-hypervisor main",
        ] {
            assert_eq!(check(good).unwrap(), good.trim());
        }
        assert!(check("cloud-hypervisor v9.0\n").unwrap_err().contains("v9.0 is too old: install v34 or later"));
        for other in ["", "QEMU emulator version 7.2", "cloud-hypervisor"] {
            assert!(check(other).unwrap_err().contains("does not say its version"), "{other}");
        }
    }
}
