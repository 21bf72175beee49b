//! The layout of Tart: the directory of a VM.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::{
    MacMachine, Notices, invalid,
    payload::{HardwareModel, MachineIdentity},
    refused, source,
    stage::ExportStage,
};
use crate::domain::{
    Arch, Code, GuestOs, Result, Template,
    mac::Mac,
    tart_config::{self, TartConfig},
    template::DiskFormat,
};

pub(super) const CONFIG: &str = "config.json";
pub(super) const DISK: &str = "disk.img";
pub(super) const NVRAM: &str = "nvram.bin";
const MEMORY: &str = "state.vzvmsave";

pub(super) struct TartContents {
    pub config: PathBuf,
    pub disk: PathBuf,
    pub nvram: PathBuf,
}

/// The files are imported unchanged.
pub(super) fn read(path: &Path, discard_memory: bool, notices: &mut Notices) -> Result<TartContents> {
    let dir = source::directory(path)?;
    let config = source::part(&dir, CONFIG)?;
    // Before the other parts, because a VM whose disk is in layers has no disk of its own.
    source::not_run_by_tart(&dir)?;
    let found = TartContents {
        config,
        disk: source::part(&dir, DISK)?,
        nvram: source::optional_part(&dir, NVRAM)?
            .ok_or_else(|| invalid(NVRAM, "is missing: no guest boots without its auxiliary storage"))?,
    };
    let config = parse(&source::read(&found.config, CONFIG, tart_config::LARGEST)?)?;
    if config.os == GuestOs::Macos {
        machine(&config)?;
    }
    if source::optional_part(&dir, MEMORY)?.is_some() {
        if !discard_memory {
            let what = "holds the memory of a suspended VM, which no template can keep: shut the VM down, or say \
                        `discard_memory` to lose it";
            return Err(refused(Code::SourceSuspended, MEMORY, what));
        }
        notices.add(MEMORY, "was left: the guest boots instead of waking up");
    }
    source::name_the_rest(
        &dir,
        &[CONFIG, DISK, NVRAM, MEMORY, "control.sock", "manifest.json", ".explicitly-pulled"],
        notices,
    );
    Ok(found)
}

pub(super) fn parse(bytes: &[u8]) -> Result<TartConfig> {
    TartConfig::parse(bytes).map_err(|what| invalid(CONFIG, format!("is not a VM's of Tart: {what}")))
}

/// The macOS guest of a configuration.
pub(super) fn machine(config: &TartConfig) -> Result<MacMachine> {
    let (Some(model), Some(ecid)) = (&config.hardware_model, &config.ecid) else {
        return Err(invalid(CONFIG, "has no hardwareModel and ecid, which every macOS guest has"));
    };
    Ok(MacMachine {
        model: HardwareModel::from_base64(model).map_err(|what| invalid("config.json/hardwareModel", what))?,
        identity: MachineIdentity::from_base64(ecid).map_err(|what| invalid("config.json/ecid", what))?,
        cpus: config.cpus,
        memory_bytes: config.memory_bytes,
        mac: Some(config.mac),
        display: config.display,
    })
}

/// The configuration of a guest from another layout.
pub(super) fn config_of(machine: &MacMachine, mac: Mac) -> TartConfig {
    TartConfig {
        os: GuestOs::Macos,
        arch: Arch::Aarch64,
        cpus: machine.cpus,
        // Other layouts do not store the image's minimum; the guest's current size is sufficient.
        cpus_min: machine.cpus,
        memory_bytes: machine.memory_bytes,
        memory_min_bytes: machine.memory_bytes,
        mac,
        format: DiskFormat::Raw,
        ecid: Some(machine.identity.to_base64()),
        hardware_model: Some(machine.model.as_base64().to_owned()),
        display: machine.display,
        display_refit: None,
        unknown: Vec::new(),
    }
}

/// The template's settings take precedence over those of the original VM.
pub(super) fn with_size_of(config: &mut TartConfig, template: &Template) {
    config.cpus = template.cpus;
    if config.memory_mib() != template.memory_mib {
        config.memory_bytes = u64::from(template.memory_mib) << 20;
    }
}

/// `bytes` with some keys changed, and all others kept; the original bytes if nothing changes.
pub(super) fn rewritten(bytes: &[u8], was: &TartConfig, now: &TartConfig) -> Result<Vec<u8>> {
    if was == now {
        return Ok(bytes.to_vec());
    }
    let mut config: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| invalid(CONFIG, format!("is not JSON: {error}")))?;
    config.insert("cpuCount".into(), json!(now.cpus));
    config.insert("memorySize".into(), json!(now.memory_bytes));
    config.insert("macAddress".into(), json!(now.mac.to_string()));
    if let Some(ecid) = &now.ecid {
        config.insert("ecid".into(), json!(ecid));
    }
    Ok(format!("{:#}\n", Value::from(config)).into_bytes())
}

pub(super) fn write(stage: &ExportStage, config: &[u8], disk: &Path, nvram: &Path) -> Result<()> {
    stage.clone(disk, DISK)?;
    stage.clone(nvram, NVRAM)?;
    stage.write(CONFIG, config)
}
