//! `config.json`: unknown keys are ignored when it is read and gone when it is written.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    pub version: i64,
    #[serde(default = "darwin")]
    pub os: String,
    #[serde(default = "arm64")]
    pub arch: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ecid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hardware_model: Option<String>,
    pub cpu_count_min: u64,
    pub cpu_count: u64,
    pub memory_size_min: u64,
    pub memory_size: u64,
    pub mac_address: String,
    #[serde(default)]
    pub display: Display,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display_refit: Option<bool>,
    #[serde(default = "raw", deserialize_with = "disk_format")]
    pub disk_format: String,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Display {
    pub width: i64,
    pub height: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Default for Display {
    fn default() -> Display {
        Display { width: 1024, height: 768, unit: None }
    }
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

fn disk_format<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let format = String::deserialize(from)?;
    Ok(if format == "asif" { format } else { raw() })
}

impl Config {
    pub fn read(path: &Path) -> Result<Config, Failure> {
        let text = std::fs::read(path).map_err(|e| Failure::io("config.json", &e))?;
        Config::parse(&text)
    }

    pub fn parse(text: &[u8]) -> Result<Config, Failure> {
        let wrong = |why: String| {
            Failure::Other(format!("The data couldn’t be read because it isn’t in the correct format. ({why})"))
        };
        let config: Config = serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?;
        if !["darwin", "linux"].contains(&config.os.as_str()) || !["arm64", "amd64"].contains(&config.arch.as_str()) {
            return Err(wrong(format!("os {}, arch {}", config.os, config.arch)));
        }
        if config.is_darwin() && (config.ecid.is_none() || config.hardware_model.is_none()) {
            return Err(wrong("keyNotFound: ecid, hardwareModel".to_owned()));
        }
        if !is_mac(&config.mac_address) {
            return Err(wrong(format!("macAddress {}", config.mac_address)));
        }
        Ok(config)
    }

    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let value = serde_json::to_value(self).map_err(|e| Failure::Other(e.to_string()))?;
        // In place: whoever holds the lock holds it on this very file.
        std::fs::write(path, crate::json::pretty(&value)).map_err(|e| Failure::io("config.json", &e))
    }

    pub fn is_darwin(&self) -> bool {
        self.os == "darwin"
    }
}

pub fn is_mac(text: &str) -> bool {
    let octets: Vec<&str> = text.split(':').collect();
    octets.len() == 6 && octets.iter().all(|o| o.len() == 2 && u8::from_str_radix(o, 16).is_ok())
}

/// Random, locally administered, for one station.
pub fn random_mac() -> String {
    let random = uuid::Uuid::new_v4();
    let b = random.as_bytes();
    format!("{:02x}:{:02x}:{:02x}:{:02x}:{:02x}:{:02x}", (b[0] & 0xfc) | 0x02, b[1], b[2], b[3], b[4], b[5])
}

/// An opaque machine identifier.
pub fn random_ecid() -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(uuid::Uuid::new_v4().as_bytes())
}
