//! What a Tart VM's `config.json` says of the template that is made from it. The driver reads the rest when it clones.

use serde::Deserialize;

use crate::domain::{Arch, GuestOs, template::DiskFormat};

pub(super) const LARGEST_CONFIG: u64 = 1 << 20;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct TartConfig {
    pub os: GuestOs,
    pub arch: Arch,
    pub disk_format: DiskFormat,
    pub cpus: u32,
    pub memory_mib: u32,
}

/// As Tart writes it. It ignores keys that it does not know, and has defaults for those that older versions did not write.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    version: u32,
    os: Option<String>,
    arch: Option<String>,
    disk_format: Option<String>,
    cpu_count: u32,
    memory_size: u64,
    #[allow(dead_code, reason = "a VM without one does not start")]
    mac_address: String,
}

pub(super) fn parse(bytes: &[u8]) -> Result<TartConfig, String> {
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| format!("is not a Tart VM's config.json: {e}"))?;
    if raw.version != 1 {
        return Err(format!("has version {}, and only version 1 is known", raw.version));
    }
    Ok(TartConfig {
        os: match raw.os.as_deref() {
            None | Some("darwin") => GuestOs::Macos,
            Some("linux") => GuestOs::Linux,
            Some(other) => return Err(format!("has the guest system {other:?}, expected darwin or linux")),
        },
        arch: match raw.arch.as_deref() {
            None | Some("arm64") => Arch::Aarch64,
            Some("amd64") => Arch::X86_64,
            Some(other) => return Err(format!("has the architecture {other:?}, expected arm64 or amd64")),
        },
        disk_format: match raw.disk_format.as_deref() {
            None | Some("raw") => DiskFormat::Raw,
            Some("asif") => DiskFormat::Asif,
            Some(other) => return Err(format!("has the disk format {other:?}, expected raw or asif")),
        },
        cpus: raw.cpu_count,
        memory_mib: u32::try_from(raw.memory_size >> 20).unwrap_or(u32::MAX),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linux_vm_and_an_old_macos_vm() {
        let linux = br#"{"version":1,"os":"linux","arch":"arm64","cpuCountMin":4,"cpuCount":6,"memorySizeMin":4294967296,
            "memorySize":8589934592,"macAddress":"7a:65:e4:3f:b2:51","display":{"width":1024,"height":768},"diskFormat":"asif"}"#;
        let expected = TartConfig {
            os: GuestOs::Linux,
            arch: Arch::Aarch64,
            disk_format: DiskFormat::Asif,
            cpus: 6,
            memory_mib: 8192,
        };
        assert_eq!(parse(linux), Ok(expected));
        let macos =
            br#"{"version":1,"ecid":"YQ==","hardwareModel":"Yg==","cpuCountMin":4,"cpuCount":4,"memorySizeMin":1,
            "memorySize":4294967296,"macAddress":"7a:65:e4:3f:b2:51","unknown":{"a":"\/"}}"#;
        let config = parse(macos).unwrap();
        assert_eq!((config.os, config.arch, config.disk_format), (GuestOs::Macos, Arch::Aarch64, DiskFormat::Raw));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        for (text, expected) in [
            ("{}", "version"),
            (r#"{"version":2,"cpuCount":1,"memorySize":1,"macAddress":""}"#, "version 2"),
            (r#"{"version":1,"os":"windows","cpuCount":1,"memorySize":1,"macAddress":""}"#, "windows"),
            (r#"{"version":1,"diskFormat":"vhd","cpuCount":1,"memorySize":1,"macAddress":""}"#, "vhd"),
            (r#"{"version":1,"arch":"riscv","cpuCount":1,"memorySize":1,"macAddress":""}"#, "riscv"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
