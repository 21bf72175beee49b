//! `config.json`, Tart's description of a VM: rewritten for a clone.

use serde_json::{Map, Value, json};

use crate::domain::{
    GuestOs,
    mac::Mac,
    machine_identity::MachineIdentity,
    tart_config::{Display, TartConfig},
};
use crate::drivers::failure::shown;

const MIB: u64 = 1 << 20;

/// The values in which a clone differs from its template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloneShape {
    pub cpus: u32,
    pub memory_mib: u32,
    pub mac: Mac,
    /// Of a macOS guest. Apple's framework leaves undefined what happens when two guests with one identity run at a time.
    pub identity: MachineIdentity,
    pub display: Option<Display>,
}

/// The error names what was expected and what was found.
pub fn parse(bytes: &[u8]) -> Result<TartConfig, String> {
    TartConfig::parse(bytes).map_err(|what| format!("{what}; found: {}", shown(bytes)))
}

/// Only the address, to find out which ones are used. A foreign file that cannot be read uses none.
pub fn mac_of(bytes: &[u8]) -> Option<Mac> {
    let value: Value = serde_json::from_slice(bytes).ok()?;
    Mac::parse(value.get("macAddress")?.as_str()?)
}

/// The template's configuration for one clone. Unknown keys are kept unchanged.
pub fn for_clone(template: &[u8], shape: &CloneShape) -> Result<Vec<u8>, String> {
    let read = parse(template)?;
    let mut config: Map<String, Value> = serde_json::from_slice(template).map_err(|error| error.to_string())?;
    config.insert("cpuCount".to_owned(), json!(shape.cpus));
    config.insert("memorySize".to_owned(), json!(u64::from(shape.memory_mib) * MIB));
    config.insert("macAddress".to_owned(), json!(shape.mac.to_string()));
    if read.os == GuestOs::Macos {
        config.insert("ecid".to_owned(), json!(shape.identity.to_base64()));
    }
    if let Some(display) = shape.display {
        config.insert("display".to_owned(), display.to_json());
    }
    serde_json::to_vec_pretty(&config).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::template::DiskFormat;

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
        let linux = parse(LINUX).unwrap();
        assert_eq!((linux.os, linux.format), (GuestOs::Linux, DiskFormat::Raw));
        let macos = parse(MACOS).unwrap();
        assert_eq!((macos.os, macos.format, macos.cpus_min), (GuestOs::Macos, DiskFormat::Asif, 2));
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
            let error = parse(&config).unwrap_err();
            assert!(error.contains(says), "{error}");
            assert!(error.contains("; found: "), "{error}");
            assert!(for_clone(&config, &shape()).is_err());
        }
    }

    fn shape() -> CloneShape {
        let display = Some(Display { width: 1920, height: 1080, unit: Some("px") });
        let (mac, identity) = (Mac::parse("2:0:0:0:0:1").unwrap(), MachineIdentity::new(0x1234));
        CloneShape { cpus: 6, memory_mib: 6144, mac, identity, display }
    }

    #[test]
    fn a_clone_differs_in_what_it_must_and_keeps_the_rest() {
        let template = changed(MACOS, "someKeyOfTheFuture", json!({ "deep": [1, 2.5, "three"] }));
        let clone = for_clone(&template, &shape()).unwrap();
        let read = parse(&clone).unwrap();
        assert_eq!((read.cpus, read.memory_mib(), read.mac), (6, 6144, shape().mac));
        let (before, after): (Map<_, _>, Map<_, _>) =
            (serde_json::from_slice(&template).unwrap(), serde_json::from_slice(&clone).unwrap());
        let mut differ: Vec<&str> =
            after.iter().filter(|(k, v)| before.get(*k) != Some(v)).map(|(k, _)| k.as_str()).collect();
        differ.sort_unstable();
        assert_eq!(differ, ["cpuCount", "display", "ecid", "macAddress", "memorySize"]);
        assert_eq!(before.len(), after.len());
        let ecid = MachineIdentity::from_base64(after["ecid"].as_str().unwrap()).unwrap().ecid();
        assert_eq!(ecid, 0x1234);
        // A Linux guest has none.
        let linux: Map<String, Value> = serde_json::from_slice(&for_clone(LINUX, &shape()).unwrap()).unwrap();
        assert!(!linux.contains_key("ecid"));
        assert_eq!(after["display"], json!({ "width": 1920, "height": 1080, "unit": "px" }));

        let plain = for_clone(&template, &CloneShape { display: None, ..shape() }).unwrap();
        let plain: Map<String, Value> = serde_json::from_slice(&plain).unwrap();
        assert_eq!(plain.get("display"), before.get("display"));
    }
}
