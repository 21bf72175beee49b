//! The layout of macosvm: `vm.json`, and the files that it names.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    MacMachine, Notices, bundle, invalid,
    payload::{HardwareModel, MachineIdentity},
    refused, source,
    stage::ExportStage,
};
use crate::domain::{
    Code, Result, Template,
    mac::Mac,
    tart_config::{Display, TartConfig},
};

pub(super) const DESCRIPTION: &str = "vm.json";
const LARGEST_JSON: u64 = 1 << 20;
/// Tart's value for a display that is measured in pixels.
const DPI: u32 = 72;
/// Defaults of a template without values, the same as in the bundle of shoes-vz.
const USUAL_DISPLAY: (u32, u32) = (1024, 768);

#[derive(Debug)]
pub(super) struct MacosvmContents {
    pub disk: PathBuf,
    pub aux: PathBuf,
    pub machine: MacMachine,
}

/// `path` is the description, or the directory that contains one.
pub(super) fn read(path: &Path, allow_outside: bool, notices: &mut Notices) -> Result<MacosvmContents> {
    let file = if path.is_dir() { path.join(DESCRIPTION) } else { path.to_owned() };
    let dir = source::directory(file.parent().unwrap_or(Path::new("/")))?;
    let name = file.file_name().and_then(|name| name.to_str()).unwrap_or(DESCRIPTION);
    let file = source::part(&dir, name)?;
    let json: Map<String, Value> = serde_json::from_slice(&source::read(&file, name, LARGEST_JSON)?)
        .map_err(|error| invalid(name, format!("is not understood: {error}")))?;
    let description = Description { name, json, dir: &dir, allow_outside };
    match description.json.get("os") {
        None | Some(Value::Null) => {}
        Some(Value::String(os)) if os == "macos" => {}
        Some(Value::String(os)) if os == "linux" => {
            let what = "is linux, and only macOS guests go along: import its disk as raw, with its kernel";
            return Err(refused(Code::LayoutGuest, description.at("os"), what));
        }
        Some(_) => return Err(invalid(description.at("os"), "must be macos")),
    }
    source::no_live_pid(&dir)?;
    let (disk, aux) = description.storage(notices)?;
    let model = match description.text("hardwareModel")? {
        Some(text) => {
            HardwareModel::from_base64(text).map_err(|what| invalid(description.at("hardwareModel"), what))?
        }
        None => {
            let what = "is missing, and what macosvm takes instead may not be what the guest was installed with";
            return Err(invalid(description.at("hardwareModel"), what));
        }
    };
    let identity = match description.text("machineId")? {
        Some(text) => MachineIdentity::from_base64(text).map_err(|what| invalid(description.at("machineId"), what))?,
        None => bundle::identity_of(&aux, "the aux file", &model, notices)?,
    };
    let cpus = description.number("cpus")?;
    let machine = MacMachine {
        model,
        identity,
        cpus: u32::try_from(cpus).map_err(|_| invalid(description.at("cpus"), "is more than any machine has"))?,
        memory_bytes: description.number("ram")?,
        mac: description.mac(notices)?,
        display: description.display(notices)?,
    };
    description.name_the_rest(notices);
    Ok(MacosvmContents { disk, aux, machine })
}

struct Description<'a> {
    name: &'a str,
    json: Map<String, Value>,
    dir: &'a Path,
    allow_outside: bool,
}

impl Description<'_> {
    fn at(&self, key: &str) -> String {
        format!("{}/{key}", self.name)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(invalid(self.at(key), "must be a text")),
        }
    }

    fn number(&self, key: &str) -> Result<u64> {
        match self.json.get(key).map(|value| value.as_u64().filter(|n| *n > 0)) {
            Some(Some(number)) => Ok(number),
            Some(None) => Err(invalid(self.at(key), "must be a whole number above zero")),
            None => Err(invalid(self.at(key), "is missing, and macosvm needs it, too")),
        }
    }

    fn list(&self, key: &str) -> Result<&[Value]> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(&[]),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(invalid(self.at(key), "must be a list")),
        }
    }

    /// The disk and the auxiliary storage.
    fn storage(&self, notices: &mut Notices) -> Result<(PathBuf, PathBuf)> {
        let (mut disk, mut aux) = (None, None);
        for (n, item) in self.list("storage")?.iter().enumerate() {
            let at = self.at(&format!("storage/{n}"));
            let read_only = truthy(item.get("readOnly"));
            match item.get("type").and_then(Value::as_str) {
                Some("disk") if disk.is_none() => {
                    disk = Some(self.file(item, &at)?);
                    if read_only {
                        notices.add(at, "is read-only there: the clones of a template are not");
                    }
                }
                Some("disk") if read_only => notices.add(at, "does not go along: a template has one disk"),
                Some("disk") => {
                    let what = "is another writable disk, and a template has one: take it out, or make it read-only";
                    return Err(refused(Code::LayoutDisk, at, what));
                }
                Some("aux") if aux.is_none() => aux = Some(self.file(item, &at)?),
                Some("aux") => return Err(invalid(at, "is another auxiliary storage, and a machine has one")),
                Some(kind) => notices.add(at, format!("does not go along: a template has no place for {kind:?}")),
                None => notices.add(at, "does not go along: it has no type, and macosvm skips it, too"),
            }
        }
        let disk = disk.ok_or_else(|| invalid(self.at("storage"), "has no item of type disk"))?;
        let aux = aux.ok_or_else(|| {
            invalid(self.at("storage"), "has no item of type aux: no macOS guest boots without its auxiliary storage")
        })?;
        if disk == aux {
            return Err(invalid(self.at("storage"), "has one file as disk and as auxiliary storage"));
        }
        if disk.extension().is_some_and(|e| e.eq_ignore_ascii_case("asif")) {
            let what = "has a disk in Apple's sparse format, which macosvm knows nothing of: convert it to raw";
            return Err(refused(Code::LayoutDisk, self.at("storage"), what));
        }
        Ok((disk, aux))
    }

    /// A relative path is relative to the description here, and to the current directory in macosvm.
    fn file(&self, item: &Value, at: &str) -> Result<PathBuf> {
        let at = format!("{at}/file");
        let Some(text) = item.get("file").and_then(Value::as_str).filter(|t| !t.is_empty() && !t.contains('\0')) else {
            return Err(invalid(at, "must be the path of a file of this host"));
        };
        let path = Path::new(text);
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(invalid(at, "leads upwards: give the path without `..`"));
        }
        let path = self.dir.join(path);
        // Links are resolved first, because the location of the file itself counts.
        let real = fs::canonicalize(&path)
            .map_err(|error| invalid(&at, format!("{} cannot be read: {}", path.display(), error.kind())))?;
        if !real.starts_with(self.dir) && !self.allow_outside {
            let what = format!(
                "lies outside of {}: move it there, or say `allow_outside` if you know what it is",
                self.dir.display()
            );
            return Err(invalid(at, what));
        }
        if !real.is_file() {
            return Err(invalid(at, "must be a regular file"));
        }
        Ok(real)
    }

    fn mac(&self, notices: &mut Notices) -> Result<Option<Mac>> {
        let mut mac = None;
        for (n, network) in self.list("networks")?.iter().enumerate() {
            let at = self.at(&format!("networks/{n}"));
            let kind = network.get("type").and_then(Value::as_str).unwrap_or("nat");
            if kind != "nat" {
                notices.add(
                    &at,
                    format!("is of type {kind:?} there: here the driver decides how guests reach the network"),
                );
            }
            if n > 0 {
                notices.add(at, "does not go along: a template has one network");
            } else if let Some(given) = network.get("mac").filter(|given| !given.is_null()) {
                let parsed = given.as_str().and_then(Mac::parse);
                mac = Some(parsed.ok_or_else(|| invalid(format!("{at}/mac"), "must be six octets"))?);
            }
        }
        Ok(mac)
    }

    fn display(&self, notices: &mut Notices) -> Result<Option<Display>> {
        let mut first = None;
        for (n, display) in self.list("displays")?.iter().enumerate() {
            let at = self.at(&format!("displays/{n}"));
            if n > 0 {
                notices.add(at, "does not go along: a template has one display");
                continue;
            }
            // Defaults of macosvm for missing values.
            let side = |key: &str, usual: u64| match display.get(key) {
                None => Ok(usual as u32),
                Some(value) => value
                    .as_u64()
                    .and_then(|n| u32::try_from(n).ok())
                    .filter(|n| *n > 0)
                    .ok_or_else(|| invalid(format!("{at}/{key}"), "must be a whole number above zero")),
            };
            first = Some(Display { width: side("width", 2560)?, height: side("height", 1600)?, unit: None });
            if display.get("dpi").is_some_and(|dpi| dpi.as_u64() != Some(u64::from(DPI))) {
                notices.add(format!("{at}/dpi"), "does not go along: the density is Tart's");
            }
        }
        Ok(first)
    }

    fn name_the_rest(&self, notices: &mut Notices) {
        const READ: [&str; 10] = [
            "version",
            "os",
            "hardwareModel",
            "machineId",
            "cpus",
            "ram",
            "storage",
            "networks",
            "displays",
            "bootInfo",
        ];
        for (key, value) in &self.json {
            let empty = value.is_null() || value.as_array().is_some_and(Vec::is_empty) || !truthy_or_other(value);
            if (!READ.contains(&key.as_str()) || key == "bootInfo") && !empty {
                notices.add(self.at(key), "does not go along: the template has no place for it");
            }
        }
    }
}

fn truthy(value: Option<&Value>) -> bool {
    match value {
        Some(Value::Bool(yes)) => *yes,
        Some(Value::Number(number)) => number.as_f64() != Some(0.0),
        _ => false,
    }
}

/// A disabled device is not missed.
fn truthy_or_other(value: &Value) -> bool {
    !matches!(value, Value::Bool(_) | Value::Number(_)) || truthy(Some(value))
}

pub(super) fn write(
    stage: &ExportStage,
    template: &Template,
    machine: &MacMachine,
    config: &TartConfig,
    nvram: &Path,
    notices: &mut Notices,
) -> Result<()> {
    if config.display.is_some_and(|display| display.unit.is_some()) {
        notices.add("display/unit", "does not go along: macosvm has pixels only");
    }
    if config.display_refit.is_some() {
        notices.add("displayRefit", "does not go along: macosvm does not know it");
    }
    stage.clone(&template.files.disk, bundle::DISK)?;
    stage.clone(nvram, bundle::AUX)?;
    let (width, height) = machine.display.map_or(USUAL_DISPLAY, |display| (display.width, display.height));
    // macosvm resolves relative paths from its working directory, so all paths are absolute.
    let file = |name: &str| {
        let path = stage.target().join(name);
        path.into_os_string().into_string().map_err(|_| {
            let what = "must be text: a vm.json can name nothing else";
            crate::domain::Error::new(Code::RequestInvalid, format!("path {what}")).field("/path", what)
        })
    };
    let mut network = json!({ "type": "nat" });
    if let Some(mac) = machine.mac {
        network["mac"] = json!(mac.to_string());
    }
    let description = json!({
        "version": 1,
        "os": "macos",
        "hardwareModel": machine.model.as_base64(),
        "machineId": machine.identity.to_base64(),
        "cpus": machine.cpus,
        "ram": machine.memory_bytes,
        "audio": false,
        "serial": false,
        "storage": [
            { "type": "disk", "file": file(bundle::DISK)?, "readOnly": false },
            { "type": "aux", "file": file(bundle::AUX)?, "readOnly": false },
        ],
        "networks": [network],
        "displays": [{ "width": width, "height": height, "dpi": DPI }],
    });
    stage.write(DESCRIPTION, format!("{description:#}\n").as_bytes())
}
