//! `vm.json`, macosvm's description of a VM: written for a clone, and checked before each start.
//!
//! macosvm ignores unknown keys, skips storage of an unknown type, takes a file that it cannot parse for an empty
//! one, creates a missing auxiliary storage, and resolves relative paths in its working directory. So what is written
//! here is read again, strictly, before it is started.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{paths::MacosvmPaths, section::IdentityChoice, settings::MacosvmNetwork};
use crate::domain::{
    mac::Mac,
    machine_identity::{MachineIdentity, decode, value_of},
    tart_config::{Display, TartConfig},
};

/// Tart's value for a display that is measured in pixels.
const DPI: u32 = 72;
const USUAL_DISPLAY: Display = Display { width: 1024, height: 768, unit: None };
const MIB: u64 = 1 << 20;
/// Far larger than any description.
pub const LARGEST: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VmDescription {
    version: u32,
    os: String,
    hardware_model: String,
    machine_id: String,
    pub cpus: u32,
    ram: u64,
    storage: Vec<StorageItem>,
    networks: Vec<NetworkItem>,
    displays: Vec<DisplayItem>,
    audio: bool,
    serial: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StorageItem {
    #[serde(rename = "type")]
    kind: StorageKind,
    file: PathBuf,
    read_only: bool,
    /// How writes reach the host's disk; macosvm reads it from version 0.2-3 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    sync: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cache: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StorageKind {
    Disk,
    Aux,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
enum NetworkItem {
    Nat { mac: String },
    Bridge { interface: String, mac: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct DisplayItem {
    width: u32,
    height: u32,
    dpi: u32,
}

/// The values in which a clone differs from its template.
#[derive(Clone, Debug)]
pub struct VmShape {
    pub cpus: u32,
    pub memory_mib: u32,
    pub mac: Mac,
    pub identity: IdentityChoice,
    pub display: Option<Display>,
    pub network: MacosvmNetwork,
}

impl VmDescription {
    /// For a clone at `paths`. The error names what is wrong with the template.
    pub fn of_clone(config: &TartConfig, shape: &VmShape, paths: &MacosvmPaths) -> Result<VmDescription, String> {
        let hardware_model = config.hardware_model.clone().ok_or("has no hardwareModel")?;
        let machine_id = match shape.identity {
            IdentityChoice::Keep => config.ecid.clone().ok_or("has no ecid")?,
            IdentityChoice::Regenerate => MachineIdentity::random().to_base64(),
        };
        let mac = shape.mac.to_string();
        let network = match &shape.network {
            MacosvmNetwork::Nat => NetworkItem::Nat { mac },
            MacosvmNetwork::Bridged { interface } => NetworkItem::Bridge { interface: interface.clone(), mac },
        };
        let Display { width, height, .. } = shape.display.or(config.display).unwrap_or(USUAL_DISPLAY);
        // The first one is the boot disk. It is deleted afterwards, so its writes need not survive a power failure.
        let word = |word: &str| Some(word.to_owned());
        let storage = vec![
            StorageItem {
                kind: StorageKind::Disk,
                file: paths.disk(),
                read_only: false,
                sync: word("none"),
                cache: word("cached"),
            },
            StorageItem { kind: StorageKind::Aux, file: paths.aux(), read_only: false, sync: None, cache: None },
        ];
        let description = VmDescription {
            version: 1,
            os: "macos".to_owned(),
            hardware_model,
            machine_id,
            cpus: shape.cpus,
            ram: u64::from(shape.memory_mib) * MIB,
            storage,
            networks: vec![network],
            displays: vec![DisplayItem { width, height, dpi: DPI }],
            audio: false,
            serial: false,
        };
        description.check(paths)?;
        Ok(description)
    }

    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec_pretty(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads what `to_bytes` wrote for a clone at `paths`, and nothing else. Whether the files exist is another
    /// question.
    pub fn parse(bytes: &[u8], paths: &MacosvmPaths) -> Result<VmDescription, String> {
        let description: VmDescription =
            serde_json::from_slice(bytes).map_err(|error| format!("is not what Mayfly writes: {error}"))?;
        description.check(paths)?;
        Ok(description)
    }

    /// Everything that macosvm does not check itself.
    fn check(&self, paths: &MacosvmPaths) -> Result<(), String> {
        if (self.version, self.os.as_str()) != (1, "macos") {
            return Err("is not a macOS VM of version 1".to_owned());
        }
        match decode(&self.hardware_model).and_then(|bytes| value_of(&bytes, "PlatformVersion")) {
            Ok(Some(_)) => {}
            Ok(None) => return Err("has a hardwareModel without a PlatformVersion".to_owned()),
            Err(why) => return Err(format!("has a hardwareModel that {why}")),
        }
        MachineIdentity::from_base64(&self.machine_id).map_err(|why| format!("has a machineId (ecid) that {why}"))?;
        if self.cpus == 0 || self.ram < 64 * MIB {
            return Err(format!("has {} cores and {} bytes of memory", self.cpus, self.ram));
        }
        let files: Vec<(StorageKind, &Path)> =
            self.storage.iter().map(|item| (item.kind, item.file.as_path())).collect();
        let (disk, aux) = (paths.disk(), paths.aux());
        if files != [(StorageKind::Disk, disk.as_path()), (StorageKind::Aux, aux.as_path())] {
            return Err("does not have exactly its own disk and auxiliary storage".to_owned());
        }
        if self.displays.is_empty() {
            return Err("has no display, which every macOS guest needs".to_owned());
        }
        self.mac().map(drop)
    }

    /// The Ethernet address of its only network card.
    pub fn mac(&self) -> Result<Mac, String> {
        let [NetworkItem::Nat { mac } | NetworkItem::Bridge { mac, .. }] = self.networks.as_slice() else {
            return Err("does not have exactly one network card".to_owned());
        };
        Mac::parse(mac).ok_or_else(|| format!("has a network card with the address {mac:?}"))
    }

    pub fn memory_mib(&self) -> u32 {
        u32::try_from(self.ram.div_ceil(MIB)).unwrap_or(u32::MAX)
    }
}

/// Only the address, to find out which ones are used. A file that cannot be read uses none.
pub fn mac_of(bytes: &[u8]) -> Option<Mac> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    Mac::parse(value["networks"][0]["mac"].as_str()?)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::VmId;

    const MACOS: &[u8] = include_bytes!("fixtures/config-macos.json");

    fn paths() -> MacosvmPaths {
        MacosvmPaths::new(Path::new("/instances"), &VmId::mint().instance())
    }

    fn shape() -> VmShape {
        VmShape {
            cpus: 6,
            memory_mib: 6144,
            mac: Mac::parse("2:0:0:0:0:1").unwrap(),
            identity: IdentityChoice::Keep,
            display: None,
            network: MacosvmNetwork::Nat,
        }
    }

    fn config() -> TartConfig {
        TartConfig::parse(MACOS).unwrap()
    }

    fn written(shape: &VmShape, paths: &MacosvmPaths) -> Value {
        let bytes = VmDescription::of_clone(&config(), shape, paths).unwrap().to_bytes().unwrap();
        assert!(VmDescription::parse(&bytes, paths).is_ok());
        serde_json::from_slice(&bytes).unwrap()
    }

    #[test]
    fn a_clone_is_described_as_macosvm_reads_it() {
        let paths = paths();
        let config = config();
        let dir = paths.dir.to_str().unwrap();
        assert_eq!(
            written(&shape(), &paths),
            json!({
                "version": 1, "os": "macos", "hardwareModel": config.hardware_model, "machineId": config.ecid, "cpus": 6,
                "ram": 6144_u64 << 20,
                "storage": [
                    {"type": "disk", "file": format!("{dir}/disk.img"), "readOnly": false, "sync": "none", "cache": "cached"},
                    {"type": "aux", "file": format!("{dir}/aux.img"), "readOnly": false},
                ],
                "networks": [{"type": "nat", "mac": "02:00:00:00:00:01"}],
                "displays": [{"width": 1920, "height": 1200, "dpi": 72}], "audio": false, "serial": false,
            })
        );
        let display = Some(Display { width: 800, height: 600, unit: None });
        let network = MacosvmNetwork::Bridged { interface: "en0".to_owned() };
        let other = written(&VmShape { display, network, ..shape() }, &paths);
        assert_eq!(other["networks"], json!([{"type": "bridge", "interface": "en0", "mac": "02:00:00:00:00:01"}]));
        assert_eq!(other["displays"][0]["width"], 800);
    }

    #[test]
    fn a_new_identity_is_unique() {
        let paths = paths();
        let fresh =
            || written(&VmShape { identity: IdentityChoice::Regenerate, ..shape() }, &paths)["machineId"].clone();
        let (one, two) = (fresh(), fresh());
        assert_ne!(one, two);
        assert_ne!(Some(one.as_str().unwrap().to_owned()), config().ecid);
    }

    #[test]
    fn a_template_that_macosvm_would_boot_wrongly_is_refused() {
        let refused =
            |config: TartConfig, shape: VmShape| VmDescription::of_clone(&config, &shape, &paths()).unwrap_err();
        let model = |model: Option<&str>| TartConfig { hardware_model: model.map(str::to_owned), ..config() };
        assert_eq!(refused(model(None), shape()), "has no hardwareModel");
        assert!(refused(model(Some("???")), shape()).contains("hardwareModel that is not Base64"));
        let ecid = config().ecid;
        assert!(refused(model(ecid.as_deref()), shape()).contains("without a PlatformVersion"));
        assert!(
            refused(TartConfig { ecid: Some("YQ==".to_owned()), ..config() }, shape()).contains("machineId (ecid)")
        );
        assert!(refused(config(), VmShape { cpus: 0, ..shape() }).contains("0 cores"));
        assert!(refused(config(), VmShape { memory_mib: 63, ..shape() }).contains("bytes of memory"));
    }

    #[test]
    fn a_description_that_mayfly_did_not_write_is_refused() {
        let paths = paths();
        let whole = written(&shape(), &paths);
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut value = whole.clone();
            change(&mut value);
            VmDescription::parse(value.to_string().as_bytes(), &paths).unwrap_err()
        };
        assert!(VmDescription::parse(&whole.to_string().as_bytes()[..100], &paths).is_err());
        assert!(changed(&|v| v["shares"] = json!([])).contains("unknown field `shares`"));
        assert!(changed(&|v| v["os"] = json!("linux")).contains("not a macOS VM"));
        assert!(changed(&|v| v["storage"][0]["type"] = json!("usb")).contains("unknown variant"));
        assert!(changed(&|v| v["storage"][0]["file"] = json!("disk.img")).contains("its own disk"));
        assert!(changed(&|v| v["storage"].as_array_mut().unwrap().reverse()).contains("its own disk"));
        assert!(changed(&|v| v["networks"] = json!([])).contains("one network card"));
        assert!(changed(&|v| v["networks"][0]["mac"] = json!("x")).contains("\"x\""));
        assert!(changed(&|v| v["displays"] = json!([])).contains("no display"));
        let elsewhere = MacosvmPaths::new(Path::new("/elsewhere"), &VmId::mint().instance());
        assert!(VmDescription::parse(whole.to_string().as_bytes(), &elsewhere).is_err());
    }
}
