//! The description of a VM, read as carelessly as the real program reads it.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};

use crate::{
    cli::{Ended, Options},
    words,
};

pub struct Description {
    pub json: Value,
}

#[derive(Clone, Debug)]
pub struct Disk {
    pub kind: String,
    pub file: String,
    pub read_only: bool,
    pub keep: bool,
}

#[derive(Clone, Debug)]
pub struct Network {
    pub kind: String,
    pub mac: String,
    pub interface: Option<String>,
}

impl Description {
    /// A file that cannot be parsed counts as empty. The options then add to it.
    pub fn read(options: &Options) -> Result<Description, Ended> {
        let mut json = json!({});
        if let Some(path) = &options.config {
            match std::fs::read(path) {
                Ok(bytes) => json = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({})),
                Err(_) if options.init => {}
                Err(_) => return Err(Ended::Usage(format!("cannot open {path} for reading"))),
            }
        }
        if !json.is_object() {
            json = json!({});
        }
        let mut add = |key: &str, value: Value| match json[key].as_array_mut() {
            Some(list) => list.push(value),
            None => json[key] = json!([value]),
        };
        for (kind, value) in &options.storage {
            let mut parts = value.split(',');
            let file = parts.next().unwrap_or_default();
            let mut item = json!({"type": kind, "file": file});
            for option in parts {
                match option {
                    "ro" => item["readOnly"] = json!(true),
                    "keep" => item["keep"] = json!(true),
                    _ => {}
                }
            }
            add("storage", item);
        }
        for network in &options.networks {
            let (kind, rest) = network.split_once(':').map_or((network.as_str(), None), |(k, rest)| (k, Some(rest)));
            let mut item = json!({"type": kind});
            if let Some(rest) = rest {
                item[if kind == "nat" { "mac" } else { "interface" }] = json!(rest);
            }
            add("networks", item);
        }
        if let Some(mac) = &options.mac {
            // With two or more network cards, all others vanish.
            let mut first = json["networks"][0].clone();
            if !first.is_object() {
                first = json!({"type": "nat"});
            }
            first["mac"] = json!(mac);
            json["networks"] = json!([first]);
        }
        for (key, value) in [("cpus", options.cpus), ("ram", options.ram)] {
            if let Some(value) = value {
                json[key] = json!(value);
            }
        }
        if let Some(audio) = options.audio {
            json["audio"] = json!(audio);
        }
        Ok(Description { json })
    }

    /// Absent is macOS; something unknown is an exception.
    pub fn is_macos(&self) -> Result<bool, Ended> {
        match self.json["os"].as_str() {
            None | Some("macos") => Ok(true),
            Some("linux") => Ok(false),
            Some(_) => Err(Ended::Exception("Unsupported os specification".to_owned())),
        }
    }

    pub fn number(&self, key: &str) -> Option<u64> {
        self.json[key].as_u64()
    }

    pub fn has_serial(&self, options: &Options) -> bool {
        let serial = match &self.json["serial"] {
            Value::Bool(serial) => *serial,
            Value::Number(number) => number.as_f64() != Some(0.0),
            _ => true,
        };
        serial && !options.no_serial
    }

    /// Items without a known type are skipped without a word.
    pub fn storage(&self) -> Vec<Disk> {
        let items = self.json["storage"].as_array().cloned().unwrap_or_default();
        let known = items.iter().filter_map(|item| {
            let kind = item["type"].as_str()?;
            let file = item["file"].as_str()?;
            let truthy = |key: &str| item[key].as_bool().unwrap_or_else(|| item[key].as_u64().is_some_and(|n| n > 0));
            ["disk", "aux", "usb", "initrd"].contains(&kind).then(|| Disk {
                kind: kind.to_owned(),
                file: file.to_owned(),
                read_only: truthy("readOnly"),
                keep: truthy("keep"),
            })
        });
        known.collect()
    }

    /// Absent: one NAT card.
    pub fn networks(&self) -> Vec<Network> {
        let items = self.json["networks"].as_array().cloned().unwrap_or_else(|| vec![json!({"type": "nat"})]);
        let mut cards = Vec::new();
        for item in items {
            let kind = item["type"].as_str().unwrap_or("nat").to_owned();
            let given = item["mac"].as_str().map(str::to_owned);
            match &given {
                Some(mac) => words::print(&format!("INFO: add NAT network with MAC address {mac}")),
                None if kind == "nat" => words::print("INFO: add NAT network (random MAC address)"),
                None => {}
            }
            let card = Network {
                mac: given.unwrap_or_else(random_mac),
                interface: item["interface"].as_str().map(str::to_owned),
                kind,
            };
            // A bridged device is put into the list of devices twice.
            if card.kind.starts_with("br") {
                cards.push(card.clone());
            }
            cards.push(card);
        }
        cards
    }

    /// Width, height and density of each display; absent keys have defaults.
    pub fn displays(&self) -> Vec<(u64, u64, u64)> {
        let items = self.json["displays"].as_array().cloned().unwrap_or_else(|| vec![json!({})]);
        let number = |item: &Value, key: &str, usual: u64| item[key].as_u64().unwrap_or(usual);
        items.iter().map(|i| (number(i, "width", 2560), number(i, "height", 1600), number(i, "dpi", 200))).collect()
    }

    /// The framework takes binary property lists only.
    pub fn check_payloads(&self) -> Result<(), Ended> {
        let Some(model) = self.json["hardwareModel"].as_str() else {
            words::log("WARNING: no hardware information found, using arm64 macOS 12.0.0 specs");
            return Ok(());
        };
        let is_list = |text: &str| STANDARD.decode(text).is_ok_and(|bytes| bytes.starts_with(b"bplist00"));
        if !is_list(model) {
            return Err(Ended::Exception(words::invalid("The hardware model is invalid.")));
        }
        match self.json["machineId"].as_str() {
            Some(id) if !is_list(id) => Err(Ended::Exception(words::invalid("The machine identifier is invalid."))),
            _ => Ok(()),
        }
    }
}

fn random_mac() -> String {
    let random = uuid::Uuid::new_v4();
    let b = random.as_bytes();
    format!("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", b[0] & 0xfc | 2, b[1], b[2], b[3], b[4], b[5])
}

/// A path is relative to the current directory of the process, not to the description.
pub fn exists(file: &str) -> bool {
    Path::new(file).exists()
}
