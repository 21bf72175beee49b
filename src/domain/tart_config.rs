//! `config.json`, Tart's description of a VM: its fields and their validation.
//!
//! Tart replaces unknown values by defaults, such as an unknown disk format by raw. Here they are refused, because a
//! guest that is created from a wrong guess finds a corrupt disk. The machine identity and the hardware model are
//! opaque here; `templates::layouts` looks into them.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{
    mac::Mac,
    template::{Arch, DiskFormat, GuestOs},
};

/// Far larger than any VM's configuration.
pub const LARGEST: u64 = 1 << 20;
const MIB: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TartConfig {
    pub os: GuestOs,
    pub arch: Arch,
    pub cpus: u32,
    pub cpus_min: u32,
    pub memory_bytes: u64,
    pub memory_min_bytes: u64,
    pub mac: Mac,
    pub format: DiskFormat,
    /// Base64 of the machine's identity; every macOS guest has one.
    pub ecid: Option<String>,
    /// Base64 of the hardware model; every macOS guest has one.
    pub hardware_model: Option<String>,
    pub display: Option<Display>,
    pub display_refit: Option<bool>,
    /// Unknown keys, in order. Tart drops them when it writes the file.
    pub unknown: Vec<String>,
}

/// The guest's screen: `1920x1080`, followed by `pt` or `px` if the unit matters.
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

    /// As Tart writes it.
    pub fn to_json(self) -> Value {
        let mut display = json!({ "width": self.width, "height": self.height });
        if let Some(unit) = self.unit {
            display["unit"] = json!(unit);
        }
        display
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawTartConfig {
    version: u64,
    os: Option<String>,
    arch: Option<String>,
    ecid: Option<String>,
    hardware_model: Option<String>,
    cpu_count_min: u32,
    cpu_count: u32,
    memory_size_min: u64,
    memory_size: u64,
    mac_address: String,
    display: Option<RawDisplay>,
    display_refit: Option<bool>,
    disk_format: Option<String>,
    #[serde(flatten)]
    unknown: BTreeMap<String, IgnoredAny>,
}

#[derive(Deserialize)]
struct RawDisplay {
    width: u32,
    height: u32,
    unit: Option<String>,
}

impl TartConfig {
    /// The error states what was expected, and shows only the wrong value of the content.
    pub fn parse(bytes: &[u8]) -> Result<TartConfig, String> {
        if bytes.len() as u64 > LARGEST {
            return Err(format!("expected a VM's configuration, which has no {} bytes", bytes.len()));
        }
        let raw: RawTartConfig =
            serde_json::from_slice(bytes).map_err(|error| format!("expected a VM's configuration: {error}"))?;
        if raw.version != 1 {
            return Err(format!("expected version 1 of the configuration, not {}", raw.version));
        }
        let os = match raw.os.as_deref() {
            None | Some("darwin") => GuestOs::Macos,
            Some("linux") => GuestOs::Linux,
            Some(other) => return Err(format!("expected os to be darwin or linux, not {other:?}")),
        };
        let arch = match raw.arch.as_deref() {
            None | Some("arm64") => Arch::Aarch64,
            Some("amd64") => Arch::X86_64,
            Some(other) => return Err(format!("expected arch to be arm64 or amd64, not {other:?}")),
        };
        let format = match raw.disk_format.as_deref() {
            None | Some("raw") => DiskFormat::Raw,
            Some("asif") => DiskFormat::Asif,
            Some(other) => return Err(format!("expected diskFormat to be raw or asif, not {other:?}")),
        };
        if os == GuestOs::Macos && (raw.ecid.is_none() || raw.hardware_model.is_none()) {
            return Err("expected ecid and hardwareModel, which every macOS guest has".to_owned());
        }
        let mac = Mac::parse(&raw.mac_address)
            .ok_or_else(|| format!("expected macAddress to be six octets, not {:?}", raw.mac_address))?;
        let display = match raw.display {
            None => None,
            Some(RawDisplay { width, height, unit }) => {
                let unit = match unit.as_deref() {
                    None => None,
                    Some("pt") => Some("pt"),
                    Some("px") => Some("px"),
                    Some(other) => return Err(format!("expected display.unit to be pt or px, not {other:?}")),
                };
                Some(Display { width, height, unit })
            }
        };
        Ok(TartConfig {
            os,
            arch,
            cpus: raw.cpu_count,
            cpus_min: raw.cpu_count_min,
            memory_bytes: raw.memory_size,
            memory_min_bytes: raw.memory_size_min,
            mac,
            format,
            ecid: raw.ecid,
            hardware_model: raw.hardware_model,
            display,
            display_refit: raw.display_refit,
            unknown: raw.unknown.into_keys().collect(),
        })
    }

    /// As Tart writes it, without unknown keys.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut config = json!({
            "version": 1,
            "os": match self.os { GuestOs::Macos => "darwin", GuestOs::Linux => "linux" },
            "arch": match self.arch { Arch::Aarch64 => "arm64", Arch::X86_64 => "amd64" },
            "cpuCountMin": self.cpus_min,
            "cpuCount": self.cpus,
            "memorySizeMin": self.memory_min_bytes,
            "memorySize": self.memory_bytes,
            "macAddress": self.mac.to_string(),
            "diskFormat": self.format.as_str(),
        });
        let more = [
            ("ecid", self.ecid.as_ref().map(|v| json!(v))),
            ("hardwareModel", self.hardware_model.as_ref().map(|v| json!(v))),
            ("display", self.display.map(Display::to_json)),
            ("displayRefit", self.display_refit.map(|v| json!(v))),
        ];
        for (key, value) in more {
            if let Some(value) = value {
                config[key] = value;
            }
        }
        format!("{config:#}\n").into_bytes()
    }

    pub fn memory_mib(&self) -> u32 {
        u32::try_from(self.memory_bytes.div_ceil(MIB)).unwrap_or(u32::MAX)
    }

    /// Why guests of this template cannot be this small. The minimum of an image is enforced for macOS guests; for
    /// Linux guests Tart records a minimum but does not enforce it.
    pub fn too_small(&self, cpus: u32, memory_mib: u32) -> Option<String> {
        if self.os != GuestOs::Macos {
            return None;
        }
        let least_mib = self.memory_min_bytes.div_ceil(MIB);
        if cpus < self.cpus_min {
            return Some(format!("the template needs at least {} cores, but {cpus} were requested", self.cpus_min));
        }
        if u64::from(memory_mib) < least_mib {
            return Some(format!(
                "the template needs at least {least_mib} MiB of memory, but {memory_mib} MiB were requested"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn linux() -> Value {
        json!({"version": 1, "os": "linux", "arch": "arm64", "cpuCountMin": 4, "cpuCount": 6, "memorySizeMin": 4294967296_u64,
            "memorySize": 8589934592_u64, "macAddress": "7a:65:e4:3f:b2:51",
            "display": {"width": 1024, "height": 768, "unit": "px"}, "displayRefit": false, "diskFormat": "asif"})
    }

    fn macos() -> Value {
        json!({"version": 1, "ecid": "YQ==", "hardwareModel": "Yg==", "cpuCountMin": 4, "cpuCount": 4,
            "memorySizeMin": 4294967296_u64, "memorySize": 4294967296_u64, "macAddress": "7a:65:e4:3f:b2:51"})
    }

    fn changed(from: &Value, key: &str, value: Value) -> Vec<u8> {
        let mut config: Map<String, Value> = from.as_object().unwrap().clone();
        if value.is_null() {
            config.remove(key)
        } else {
            config.insert(key.to_owned(), value)
        };
        serde_json::to_vec(&config).unwrap()
    }

    #[test]
    fn both_kinds_of_guests_are_read_and_written_again() {
        let config = TartConfig::parse(linux().to_string().as_bytes()).unwrap();
        assert_eq!((config.os, config.arch, config.format), (GuestOs::Linux, Arch::Aarch64, DiskFormat::Asif));
        assert_eq!((config.cpus, config.memory_mib(), config.mac.to_string().as_str()), (6, 8192, "7a:65:e4:3f:b2:51"));
        assert_eq!(config.display, Display::parse("1024x768px"));
        assert_eq!(serde_json::from_slice::<Value>(&config.to_bytes()).unwrap(), linux());

        // What Tart takes for granted.
        let config = TartConfig::parse(macos().to_string().as_bytes()).unwrap();
        assert_eq!((config.os, config.arch, config.format), (GuestOs::Macos, Arch::Aarch64, DiskFormat::Raw));
        assert_eq!((config.display, config.display_refit), (None, None));
        assert_eq!(TartConfig::parse(&config.to_bytes()), Ok(config));
    }

    #[test]
    fn keys_of_the_future_are_named() {
        let config = TartConfig::parse(&changed(&macos(), "nested", json!({"a": "/"}))).unwrap();
        assert_eq!(config.unknown, ["nested"]);
        let escaped = macos().to_string().replace("Yg==", "Yg\\/=");
        assert_eq!(TartConfig::parse(escaped.as_bytes()).unwrap().hardware_model.as_deref(), Some("Yg/="));
    }

    #[test]
    fn what_is_not_known_is_not_guessed() {
        let linux = linux();
        for (config, says) in [
            (b"".to_vec(), "expected a VM's configuration"),
            (b"[]".to_vec(), "expected a VM's configuration"),
            (b"{}".to_vec(), "missing field `version`"),
            (linux.to_string().into_bytes()[..40].to_vec(), "expected a VM's configuration"),
            (linux.to_string().replacen('{', "{\"version\":1,", 1).into_bytes(), "duplicate field `version`"),
            (changed(&linux, "version", json!(2)), "expected version 1 of the configuration, not 2"),
            (changed(&linux, "os", json!("windows")), "not \"windows\""),
            (changed(&linux, "arch", json!("riscv64")), "not \"riscv64\""),
            (changed(&linux, "diskFormat", json!("overlay")), "not \"overlay\""),
            (changed(&linux, "macAddress", json!("none")), "not \"none\""),
            (changed(&linux, "memorySize", json!(-1)), "expected a VM's configuration"),
            (changed(&linux, "display", json!({"width": 1})), "missing field `height`"),
            (changed(&linux, "display", json!({"width": 1, "height": 1, "unit": "cm"})), "not \"cm\""),
            (changed(&linux, "cpuCount", Value::Null), "missing field `cpuCount`"),
            (changed(&linux, "cpuCountMin", Value::Null), "missing field `cpuCountMin`"),
            (changed(&macos(), "ecid", Value::Null), "expected ecid and hardwareModel"),
            (vec![b' '; LARGEST as usize + 1], "which has no 1048577 bytes"),
        ] {
            let error = TartConfig::parse(&config).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_minimum_is_named_beside_what_was_asked() {
        let text = changed(&macos(), "cpuCountMin", json!(2));
        let macos = TartConfig::parse(&text).unwrap();
        assert_eq!(macos.too_small(2, 4096), None);
        assert_eq!(
            macos.too_small(1, 8192).as_deref(),
            Some("the template needs at least 2 cores, but 1 were requested")
        );
        assert_eq!(
            macos.too_small(4, 4095).as_deref(),
            Some("the template needs at least 4096 MiB of memory, but 4095 MiB were requested")
        );
        assert_eq!(TartConfig::parse(linux().to_string().as_bytes()).unwrap().too_small(1, 256), None);
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

    /// Every test run repeats the inputs of the fuzzer.
    #[test]
    fn the_fuzzers_corpus() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/tart_config");
        let (mut good, mut bad) = (0, 0);
        for entry in std::fs::read_dir(corpus).unwrap() {
            match TartConfig::parse(&std::fs::read(entry.unwrap().path()).unwrap()) {
                Ok(config) => {
                    let again = TartConfig::parse(&config.to_bytes()).unwrap();
                    assert_eq!(again, TartConfig { unknown: Vec::new(), ..config });
                    good += 1;
                }
                Err(_) => bad += 1,
            }
        }
        assert!(good >= 3 && bad >= 3, "{good} good and {bad} bad ones");
    }
}
