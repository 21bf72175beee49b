//! `config.json`, Tart's description of a VM: read strictly, and rewritten for a clone.

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{fault::shown, mac::Mac};
use crate::domain::{Arch, GuestOs, template::DiskFormat};

const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub os: GuestOs,
    pub arch: Arch,
    pub cpus: u32,
    pub cpus_min: u32,
    pub memory_bytes: u64,
    pub memory_min_bytes: u64,
    pub mac: Mac,
    pub format: DiskFormat,
}

/// What a clone has that its template has not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub cpus: u32,
    pub memory_mib: u32,
    pub mac: Mac,
    pub display: Option<Display>,
}

/// The guest's screen: `1920x1080`, with `pt` or `px` behind it when the unit matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Display {
    pub width: u32,
    pub height: u32,
    pub unit: Option<&'static str>,
}

impl Display {
    pub fn parse(text: &str) -> Option<Display> {
        let (size, unit) =
            match text.strip_suffix("pt").map(|s| (s, "pt")).or(text.strip_suffix("px").map(|s| (s, "px"))) {
                Some((size, unit)) => (size, Some(unit)),
                None => (text, None),
            };
        let (width, height) = size.split_once('x')?;
        let pixels = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            text.parse().ok().filter(|n| digits && *n > 0)
        };
        Some(Display { width: pixels(width)?, height: pixels(height)?, unit })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    version: u64,
    #[serde(default = "darwin")]
    os: String,
    #[serde(default = "arm64")]
    arch: String,
    ecid: Option<String>,
    hardware_model: Option<String>,
    cpu_count_min: u32,
    cpu_count: u32,
    memory_size_min: u64,
    memory_size: u64,
    mac_address: String,
    #[serde(default = "raw")]
    disk_format: String,
}

fn darwin() -> String {
    "darwin".to_owned()
}

fn arm64() -> String {
    "arm64".to_owned()
}

fn raw() -> String {
    "raw".to_owned()
}

impl Config {
    /// The error says what was expected and shows what was found.
    pub fn parse(bytes: &[u8]) -> Result<Config, String> {
        let expected = |what: String| format!("{what}; found: {}", shown(bytes));
        let raw: Raw = serde_json::from_slice(bytes)
            .map_err(|error| expected(format!("expected a VM's configuration: {error}")))?;
        if raw.version != 1 {
            return Err(expected(format!("expected version 1 of the configuration, not {}", raw.version)));
        }
        let os = match raw.os.as_str() {
            "darwin" => GuestOs::Macos,
            "linux" => GuestOs::Linux,
            other => return Err(expected(format!("expected os to be darwin or linux, not {other:?}"))),
        };
        let arch = match raw.arch.as_str() {
            "arm64" => Arch::Aarch64,
            "amd64" => Arch::X86_64,
            other => return Err(expected(format!("expected arch to be arm64 or amd64, not {other:?}"))),
        };
        // Tart takes an unknown format for raw, and would hand the guest a disk of rubbish.
        let format = match raw.disk_format.as_str() {
            "raw" => DiskFormat::Raw,
            "asif" => DiskFormat::Asif,
            other => return Err(expected(format!("expected diskFormat to be raw or asif, not {other:?}"))),
        };
        if os == GuestOs::Macos && (raw.ecid.is_none() || raw.hardware_model.is_none()) {
            return Err(expected("expected ecid and hardwareModel, which every macOS guest has".to_owned()));
        }
        let mac = Mac::parse(&raw.mac_address)
            .ok_or_else(|| expected(format!("expected macAddress to be six octets, not {:?}", raw.mac_address)))?;
        Ok(Config {
            os,
            arch,
            cpus: raw.cpu_count,
            cpus_min: raw.cpu_count_min,
            memory_bytes: raw.memory_size,
            memory_min_bytes: raw.memory_size_min,
            mac,
            format,
        })
    }

    pub fn memory_mib(&self) -> u32 {
        u32::try_from(self.memory_bytes.div_ceil(MIB)).unwrap_or(u32::MAX)
    }

    /// Why no guest of this template can be as small as that. A macOS guest has less than its image's minimum never; for Linux
    /// guests Tart writes down a minimum and holds nobody to it.
    pub fn too_small(&self, cpus: u32, memory_mib: u32) -> Option<String> {
        if self.os != GuestOs::Macos {
            return None;
        }
        let least_mib = self.memory_min_bytes.div_ceil(MIB);
        if cpus < self.cpus_min {
            return Some(format!("the template needs at least {} cores, and {cpus} were asked for", self.cpus_min));
        }
        if u64::from(memory_mib) < least_mib {
            return Some(format!(
                "the template needs at least {least_mib} MiB of memory, and {memory_mib} MiB were asked for"
            ));
        }
        None
    }
}

/// The address alone, for the question which ones are taken. A stranger's file that cannot be read takes none.
pub fn mac_of(bytes: &[u8]) -> Option<Mac> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    Mac::parse(value.get("macAddress")?.as_str()?)
}

/// The template's configuration for one clone. Keys that nobody here knows are kept as they are.
pub fn for_clone(template: &[u8], shape: &Shape) -> Result<Vec<u8>, String> {
    Config::parse(template)?;
    let mut config: Map<String, Value> = serde_json::from_slice(template).map_err(|error| error.to_string())?;
    config.insert("cpuCount".to_owned(), json!(shape.cpus));
    config.insert("memorySize".to_owned(), json!(u64::from(shape.memory_mib) * MIB));
    config.insert("macAddress".to_owned(), json!(shape.mac.to_string()));
    if let Some(Display { width, height, unit }) = shape.display {
        let mut display = json!({ "width": width, "height": height });
        if let Some(unit) = unit {
            display["unit"] = json!(unit);
        }
        config.insert("display".to_owned(), display);
    }
    serde_json::to_vec_pretty(&config).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX: &[u8] = include_bytes!("fixtures/config-linux.json");
    const MACOS: &[u8] = include_bytes!("fixtures/config-macos.json");

    fn changed(from: &[u8], key: &str, value: Value) -> Vec<u8> {
        let mut config: Map<String, Value> = serde_json::from_slice(from).unwrap();
        if value.is_null() {
            config.remove(key)
        } else {
            config.insert(key.to_owned(), value)
        };
        serde_json::to_vec(&config).unwrap()
    }

    #[test]
    fn both_kinds_of_guests_are_read() {
        let linux = Config::parse(LINUX).unwrap();
        assert_eq!((linux.os, linux.arch, linux.format), (GuestOs::Linux, Arch::Aarch64, DiskFormat::Raw));
        assert_eq!((linux.cpus, linux.memory_mib(), linux.mac.to_string().as_str()), (4, 4096, "7a:65:e4:3f:b2:51"));
        let macos = Config::parse(MACOS).unwrap();
        assert_eq!((macos.os, macos.format, macos.cpus_min), (GuestOs::Macos, DiskFormat::Asif, 2));
        // What Tart takes for granted.
        let bare =
            changed(&changed(&changed(MACOS, "os", Value::Null), "arch", Value::Null), "diskFormat", Value::Null);
        let bare = Config::parse(&bare).unwrap();
        assert_eq!((bare.os, bare.arch, bare.format), (GuestOs::Macos, Arch::Aarch64, DiskFormat::Raw));
    }

    #[test]
    fn anything_else_is_refused_with_what_was_found() {
        for (config, says) in [
            (b"".to_vec(), "expected a VM's configuration"),
            (b"[]".to_vec(), "expected a VM's configuration"),
            (LINUX[..LINUX.len() / 2].to_vec(), "expected a VM's configuration"),
            (changed(LINUX, "version", json!(2)), "expected version 1 of the configuration, not 2"),
            (changed(LINUX, "os", json!("windows")), "not \"windows\""),
            (changed(LINUX, "arch", json!("riscv64")), "not \"riscv64\""),
            (changed(LINUX, "diskFormat", json!("overlay")), "not \"overlay\""),
            (changed(LINUX, "macAddress", json!("none")), "not \"none\""),
            (changed(LINUX, "memorySize", json!(-1)), "expected a VM's configuration"),
            (changed(LINUX, "cpuCount", Value::Null), "missing field `cpuCount`"),
            (changed(MACOS, "ecid", Value::Null), "expected ecid and hardwareModel"),
        ] {
            let error = Config::parse(&config).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("; found: "), "{error}");
            assert!(for_clone(&config, &shape()).is_err());
        }
    }

    fn shape() -> Shape {
        let display = Some(Display { width: 1920, height: 1080, unit: Some("px") });
        Shape { cpus: 6, memory_mib: 6144, mac: Mac::parse("2:0:0:0:0:1").unwrap(), display }
    }

    #[test]
    fn a_clone_differs_in_what_it_must_and_keeps_the_rest() {
        let template = changed(MACOS, "someKeyOfTheFuture", json!({ "deep": [1, 2.5, "three"] }));
        let clone = for_clone(&template, &shape()).unwrap();
        let read = Config::parse(&clone).unwrap();
        assert_eq!((read.cpus, read.memory_mib(), read.mac), (6, 6144, shape().mac));
        let (before, after): (Map<_, _>, Map<_, _>) =
            (serde_json::from_slice(&template).unwrap(), serde_json::from_slice(&clone).unwrap());
        let mut differ: Vec<&str> =
            after.iter().filter(|(k, v)| before.get(*k) != Some(v)).map(|(k, _)| k.as_str()).collect();
        differ.sort_unstable();
        assert_eq!(differ, ["cpuCount", "display", "macAddress", "memorySize"]);
        assert_eq!(before.len(), after.len());
        assert_eq!(after["display"], json!({ "width": 1920, "height": 1080, "unit": "px" }));

        let plain = for_clone(&template, &Shape { display: None, ..shape() }).unwrap();
        let plain: Map<String, Value> = serde_json::from_slice(&plain).unwrap();
        assert_eq!(plain.get("display"), before.get("display"));
    }

    #[test]
    fn the_minimum_is_named_beside_what_was_asked() {
        let macos = Config::parse(MACOS).unwrap();
        assert_eq!(macos.too_small(2, 4096), None);
        assert_eq!(
            macos.too_small(1, 8192).as_deref(),
            Some("the template needs at least 2 cores, and 1 were asked for")
        );
        assert_eq!(
            macos.too_small(4, 4095).as_deref(),
            Some("the template needs at least 4096 MiB of memory, and 4095 MiB were asked for")
        );
        assert_eq!(Config::parse(LINUX).unwrap().too_small(1, 256), None);
    }

    #[test]
    fn displays_are_read() {
        assert_eq!(Display::parse("1024x768"), Some(Display { width: 1024, height: 768, unit: None }));
        assert_eq!(Display::parse("1024x768px").unwrap().unit, Some("px"));
        assert_eq!(Display::parse("1024x768pt").unwrap().unit, Some("pt"));
        for wrong in ["", "1024", "1024x", "x768", "0x768", "1024x768cm", "+1x2", "1024x768x2"] {
            assert_eq!(Display::parse(wrong), None, "{wrong}");
        }
    }
}
