//! The template bundle of shoes-vz.
//!
//! shoes-vz reads three files and has its own sizes. `TemplateMetadata.json` is informational, but the only place for
//! cores and memory; `MachineIdentifier` belongs to a runner, and makes the conversion back lossless when it is in a
//! template.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    MacMachine, Notices, invalid,
    payload::{HardwareModel, LARGEST, MachineIdentity},
    source,
    stage::ExportStage,
};
use crate::{
    domain::{Result, Template, tart_config::TartConfig},
    platform::files,
    templates::check,
};

pub(super) const DISK: &str = "Disk.img";
pub(super) const AUX: &str = "AuxiliaryStorage";
const MODEL: &str = "HardwareModel.json";
/// In files of older programs: the bytes themselves.
const RAW_MODEL: &str = "HardwareModel";
const IDENTITY: &str = "MachineIdentifier";
const METADATA: &str = "TemplateMetadata.json";

const LARGEST_JSON: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const USUAL_CPUS: u32 = 2;
const USUAL_MEMORY_GIB: u64 = 4;

#[derive(Debug)]
pub(super) struct BundleContents {
    pub disk: PathBuf,
    pub aux: PathBuf,
    pub machine: MacMachine,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Model {
    hardware_model: Option<String>,
}

pub(super) fn read(path: &Path, notices: &mut Notices) -> Result<BundleContents> {
    let dir = source::directory(path)?;
    let disk = source::part(&dir, DISK)?;
    let aux = source::optional_part(&dir, AUX)?
        .ok_or_else(|| invalid(AUX, "is missing: no macOS guest boots without its auxiliary storage"))?;
    let model = model(&dir)?;
    source::no_live_pid(&dir)?;
    let identity = match source::optional_part(&dir, IDENTITY)? {
        Some(path) => MachineIdentity::from_bytes(source::read(&path, IDENTITY, LARGEST as u64)?)
            .map_err(|what| invalid(IDENTITY, what))?,
        None => identity_of(&aux, AUX, &model, notices)?,
    };
    let (cpus, memory_bytes) = metadata(&dir, notices)?;
    source::name_the_rest(&dir, &[DISK, AUX, MODEL, RAW_MODEL, IDENTITY, METADATA], notices);
    Ok(BundleContents {
        disk,
        aux,
        machine: MacMachine { model, identity, cpus, memory_bytes, mac: None, display: None },
    })
}

fn model(dir: &Path) -> Result<HardwareModel> {
    if let Some(path) = source::optional_part(dir, MODEL)? {
        let model: Model = serde_json::from_slice(&source::read(&path, MODEL, LARGEST_JSON)?)
            .map_err(|error| invalid(MODEL, format!("is not understood: {error}")))?;
        let text = model.hardware_model.ok_or_else(|| {
            invalid(format!("{MODEL}/hardwareModel"), "is missing: only macOS guests have one, and only they fit here")
        })?;
        return HardwareModel::from_base64(&text).map_err(|what| invalid(format!("{MODEL}/hardwareModel"), what));
    }
    match source::optional_part(dir, RAW_MODEL)? {
        Some(path) => HardwareModel::from_bytes(source::read(&path, RAW_MODEL, LARGEST as u64)?)
            .map_err(|what| invalid(RAW_MODEL, what)),
        None => Err(invalid(MODEL, "is missing, and no hardware model can be made up")),
    }
}

/// The identity that is in the auxiliary storage, or a generated one, which depends only on the files, so that a
/// repetition gives the same template.
pub(super) fn identity_of(
    aux: &Path,
    name: &str,
    model: &HardwareModel,
    notices: &mut Notices,
) -> Result<MachineIdentity> {
    let cannot = |error: std::io::Error| invalid(name, format!("cannot be read: {}", error.kind()));
    let mut file = files::open_regular(aux).map_err(|what| invalid(name, what))?;
    if let Some(ecid) = super::payload::aux::ecid(&mut file).map_err(cannot)? {
        notices.add("ecid", format!("was found in {name}: nothing else has it"));
        return Ok(MachineIdentity::new(ecid));
    }
    let seed = fingerprint(&mut file, model.bytes()).map_err(cannot)?;
    notices.add("ecid", format!("was made up, because {name} has none: macOS may ask to be set up again"));
    // Zero means none.
    Ok(MachineIdentity::new(u64::from_be_bytes(*seed.first_chunk().expect("a digest is longer")).max(1)))
}

fn metadata(dir: &Path, notices: &mut Notices) -> Result<(u32, u64)> {
    let Some(path) = source::optional_part(dir, METADATA)? else {
        notices.add(
            METADATA,
            format!("is missing: {USUAL_CPUS} cores and {USUAL_MEMORY_GIB} GiB were taken, as shoes-vz does"),
        );
        return Ok((USUAL_CPUS, USUAL_MEMORY_GIB * GIB));
    };
    let metadata: Map<String, Value> = serde_json::from_slice(&source::read(&path, METADATA, LARGEST_JSON)?)
        .map_err(|error| invalid(METADATA, format!("is not understood: {error}")))?;
    let number =
        |key: &str, most: u64| match metadata.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_u64().filter(|n| (1..=most).contains(n)).map(Some).ok_or_else(|| {
                invalid(format!("{METADATA}/{key}"), format!("must be a whole number from 1 to {most}"))
            }),
        };
    let cpus = number("cpu_count", u64::from(check::MOST_CPUS))?;
    let memory = number("memory_gb", u64::from(check::MOST_MEMORY_MIB) >> 10)?;
    for (key, usual, given) in
        [("cpu_count", format!("{USUAL_CPUS} cores"), cpus), ("memory_gb", format!("{USUAL_MEMORY_GIB} GiB"), memory)]
    {
        if given.is_none() {
            notices.add(format!("{METADATA}/{key}"), format!("is missing: {usual} were taken, as shoes-vz does"));
        }
    }
    for key in metadata.keys().filter(|key| !["cpu_count", "memory_gb", "disk_size_gb"].contains(&key.as_str())) {
        notices.add(format!("{METADATA}/{key}"), "does not go along: the template has no place for it");
    }
    let cpus = cpus.and_then(|n| u32::try_from(n).ok()).unwrap_or(USUAL_CPUS);
    Ok((cpus, memory.unwrap_or(USUAL_MEMORY_GIB) * GIB))
}

pub(super) fn write(
    stage: &ExportStage,
    template: &Template,
    machine: &MacMachine,
    config: &TartConfig,
    nvram: &Path,
    notices: &mut Notices,
) -> Result<()> {
    let memory_gib = machine.memory_bytes.div_ceil(GIB);
    if memory_gib * GIB != machine.memory_bytes {
        notices.add("memorySize", format!("is {} bytes and was rounded up to {memory_gib} GiB", machine.memory_bytes));
    }
    notices.add("macAddress", "does not go along: the framework chooses one at each start");
    if config.display.is_some() || config.display_refit.is_some() {
        notices.add("display", "does not go along: shoes-vz has a screen of its own");
    }
    stage.clone(&template.files.disk, DISK)?;
    stage.clone(nvram, AUX)?;
    stage.write(MODEL, json!({ "hardwareModel": machine.model.as_base64() }).to_string().as_bytes())?;
    stage.write(IDENTITY, machine.identity.bytes())?;
    let metadata = json!({
        "name": template.name,
        "version": template.digest,
        "created_at": template.created_at.to_string(),
        "description": format!("Exported by Mayfly {}", env!("CARGO_PKG_VERSION")),
        "base_image": template.name,
        "cpu_count": machine.cpus,
        "memory_gb": memory_gib,
        "disk_size_gb": template.disk_virtual_bytes.div_ceil(1_000_000_000),
        "features": [],
        "note": "shoes-vz reads none of this; Mayfly takes cores and memory from here",
    });
    stage.write(METADATA, format!("{metadata:#}\n").as_bytes())
}

/// The SHA-256 of `beside`, followed by the content of the file.
fn fingerprint(file: &mut File, beside: &[u8]) -> io::Result<Vec<u8>> {
    let mut hasher = Sha256::new();
    hasher.update(beside);
    file.seek(SeekFrom::Start(0))?;
    let mut block = vec![0; 256 << 10];
    loop {
        match file.read(&mut block)? {
            0 => return Ok(hasher.finalize().to_vec()),
            n => hasher.update(&block[..n]),
        }
    }
}
