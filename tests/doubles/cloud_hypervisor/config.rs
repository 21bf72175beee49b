//! The configuration of a vm: the keys that are simulated, with the program's defaults. Unknown keys are ignored.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VmConfig {
    #[serde(default)]
    pub cpus: Cpus,
    #[serde(default)]
    pub memory: Memory,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<PayloadConfig>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disks: Option<Vec<Disk>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub net: Option<Vec<Net>>,
    #[serde(default = "serial")]
    pub serial: Console,
    #[serde(default = "console")]
    pub console: Console,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub pvpanic: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Cpus {
    pub boot_vcpus: u32,
    pub max_vcpus: u32,
}

impl Default for Cpus {
    fn default() -> Self {
        Self { boot_vcpus: 1, max_vcpus: 1 }
    }
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Memory {
    pub size: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self { size: 512 << 20 }
    }
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct PayloadConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Disk {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    #[serde(default)]
    pub readonly: bool,
    #[serde(default)]
    pub backing_files: bool,
    #[serde(default)]
    pub image_type: ImageType,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
pub enum ImageType {
    FlatVmdk,
    FixedVhd,
    Qcow2,
    Raw,
    Vhdx,
    #[default]
    Unknown,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Net {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default = "yes")]
    pub offload_tso: bool,
    #[serde(default = "yes")]
    pub offload_ufo: bool,
    #[serde(default = "yes")]
    pub offload_csum: bool,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Console {
    /// Of both kinds of consoles; flattened, as an error's column shows.
    #[serde(flatten)]
    pub common: ConsoleCommon,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ConsoleCommon {
    #[serde(default)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    pub mode: Mode,
}

#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub enum Mode {
    Off,
    Pty,
    Tty,
    File,
    Socket,
    Null,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Platform {
    #[serde(alias = "uuid", skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
}

fn yes() -> bool {
    true
}

fn serial() -> Console {
    Console { common: ConsoleCommon { file: None, mode: Mode::Null } }
}

fn console() -> Console {
    Console { common: ConsoleCommon { file: None, mode: Mode::Tty } }
}
