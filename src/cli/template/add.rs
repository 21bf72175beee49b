//! `mayfly template add`

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    super::{client::ApiClient, failure::CommandFailure, output},
    settings::Settings,
};
use crate::templates::lint::LintSubject;

/// Name of the description file that image builds write beside a disk.
pub(super) const MANIFEST: &str = "template.json";

#[derive(Args)]
#[group(skip)]
#[command(group(clap::ArgGroup::new("files").args(["from", "disk", "vm_dir"]).required(true).multiple(true)))]
pub(in crate::cli) struct Add {
    /// Name of the template
    name: String,
    /// A template.json, or a directory with one; its paths are relative to it
    #[arg(long, value_name = "PATH")]
    from: Option<PathBuf>,
    /// Disk image, raw or qcow2
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Directory of a Tart VM, such as ~/.tart/vms/base
    #[arg(long, value_name = "DIR", conflicts_with_all = ["disk", "kernel", "initramfs", "firmware"])]
    vm_dir: Option<PathBuf>,
    /// Format of the disk image [default: detected]
    #[arg(long, value_parser = ["raw", "qcow2", "asif"])]
    disk_format: Option<String>,
    /// Kernel to boot instead of the disk's boot loader
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial ramdisk of that kernel
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Command line of that kernel
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// UEFI firmware image
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Driver that runs it [default: tart for Tart VMs and for macOS, else qemu]
    #[arg(long)]
    driver: Option<String>,
    /// Operating system of the guest [default: that of the Tart VM, else linux]
    #[arg(long, value_parser = ["linux", "macos"])]
    os: Option<String>,
    /// Architecture [default: that of the Tart VM, else that of the service's machine]
    #[arg(long, value_parser = ["x86_64", "aarch64"])]
    arch: Option<String>,
    #[command(flatten)]
    settings: Settings,
}

/// Its content.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct BuildManifest {
    driver: Option<String>,
    os: Option<String>,
    arch: Option<String>,
    kernel: Option<PathBuf>,
    initramfs: Option<PathBuf>,
    firmware: Option<PathBuf>,
    cmdline: Option<String>,
    disk: Option<PathBuf>,
    disk_format: Option<String>,
    cpus: Option<u32>,
    memory_mib: Option<u32>,
    handover: Option<String>,
    ssh_user: Option<String>,
    network: Option<String>,
    ready: Option<Value>,
    ssh_key: Option<PathBuf>,
}

pub(super) async fn run(args: Add, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let name = args.name.clone();
    let value = client.post(&["templates"], &request(args)?, &[]).await?;
    if json {
        return output::json(&value);
    }
    let digest = value["digest"].as_str().unwrap_or_default();
    output::line(format!("{name}  {digest}").trim_end())
}

fn request(args: Add) -> Result<Value, CommandFailure> {
    let (manifest, dir) = match &args.from {
        Some(from) => read_manifest(from)?,
        None => (BuildManifest::default(), PathBuf::new()),
    };
    // The service reads the files, and has another working directory.
    let own = |path: Option<PathBuf>| path.map(|p| std::path::absolute(&p).unwrap_or(p));
    let beside = |path: Option<PathBuf>| own(path.map(|p| dir.join(p)));
    let vm_dir = own(args.vm_dir);
    let disk = if vm_dir.is_some() { None } else { own(args.disk).or(beside(manifest.disk)) };
    if disk.is_none() && vm_dir.is_none() {
        return Err(CommandFailure::Usage("no disk: give --disk, --vm-dir, or a template.json that names one".into()));
    }
    let mut body = Map::new();
    // The service, which knows its host, chooses values that are not given.
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            body.insert(key.to_owned(), value);
        }
    };
    let path = |p: Option<PathBuf>| p.map(|p| Value::from(p.to_string_lossy().into_owned()));
    put("name", Some(args.name.into()));
    put("driver", args.driver.or(manifest.driver).map(Value::from));
    put("os", args.os.or(manifest.os).map(Value::from));
    put("arch", args.arch.or(manifest.arch).map(Value::from));
    put("disk", path(disk));
    put("vm_dir", path(vm_dir));
    put("disk_format", args.disk_format.or(manifest.disk_format).map(Value::from));
    put("kernel", path(own(args.kernel).or(beside(manifest.kernel))));
    put("initramfs", path(own(args.initramfs).or(beside(manifest.initramfs))));
    put("firmware", path(own(args.firmware).or(beside(manifest.firmware))));
    put("ssh_key", path(beside(manifest.ssh_key)));
    put("cmdline", args.cmdline.or(manifest.cmdline).map(Value::from));
    put("cpus", manifest.cpus.map(Value::from));
    put("memory_mib", manifest.memory_mib.map(Value::from));
    put("handover", manifest.handover.map(Value::from));
    put("user", manifest.ssh_user.map(Value::from));
    put("network", manifest.network.map(Value::from));
    put("ready", manifest.ready);
    args.settings.put(&mut body);
    Ok(body.into())
}

fn read_manifest(from: &Path) -> Result<(BuildManifest, PathBuf), CommandFailure> {
    let file = if from.is_dir() { from.join(MANIFEST) } else { from.to_owned() };
    let wrong = |error: &dyn std::fmt::Display| CommandFailure::Usage(format!("--from: {}: {error}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|error| wrong(&error))?;
    let manifest = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    Ok((manifest, file.parent().unwrap_or(Path::new("")).to_owned()))
}

/// What `template lint` checks in a directory with a template.json.
pub(super) fn lint_subject(dir: &Path) -> Result<LintSubject, CommandFailure> {
    let (manifest, dir) = read_manifest(dir)?;
    let wrong = |what: String| CommandFailure::Usage(format!("{}: {what}", dir.join(MANIFEST).display()));
    let Some(disk) = &manifest.disk else { return Err(wrong("no disk is named".to_owned())) };
    // In the words of the API, with its defaults.
    let mut subject = LintSubject::of_disk(dir.join(disk)).map_err(|error| wrong(error.detail))?;
    fn known<T: serde::de::DeserializeOwned>(given: Option<String>, field: &str, usual: T) -> Result<T, String> {
        let Some(given) = given else { return Ok(usual) };
        serde_json::from_value(Value::from(given.clone())).map_err(|_| format!("{field} {given:?} is unknown"))
    }
    subject.os = known(manifest.os, "os", subject.os).map_err(wrong)?;
    subject.arch = known(manifest.arch, "arch", subject.arch).map_err(wrong)?;
    subject.disk_format = known(manifest.disk_format, "disk_format", subject.disk_format).map_err(wrong)?;
    subject.handover = known(manifest.handover, "handover", subject.handover).map_err(wrong)?;
    subject.user = manifest.ssh_user.unwrap_or(subject.user);
    subject.kernel = manifest.kernel.map(|kernel| dir.join(kernel));
    subject.cmdline = manifest.cmdline;
    subject.ssh_key = manifest.ssh_key.map(|key| dir.join(key));
    Ok(subject)
}
