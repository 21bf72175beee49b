//! `mayfly template …`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    client::{Client, Failure},
    exit, output, text,
    views::TemplateView,
};

#[derive(Subcommand)]
pub(super) enum TemplateCommand {
    /// Register a template from files on the service's machine
    ///
    /// The files are copied; they may go afterwards. What is given here counts more than what --from says.
    Add(Box<Add>),
    /// Pull a template from a registry
    ///
    /// An image in Tart's format. Every byte is verified. A pull that was cut off goes on where it stopped; an image that is here
    /// already is not pulled again.
    Pull(Box<Pull>),
    /// List templates
    #[command(visible_alias = "ls")]
    List,
    /// Show one template
    Show { name: String },
    /// Delete a template that no vm needs
    #[command(visible_alias = "rm")]
    Delete { name: String },
}

#[derive(Args)]
pub(super) struct Add {
    /// Name to create vms from it with
    name: String,
    /// A template.json, or a directory with one; its paths are relative to it
    #[arg(long, value_name = "PATH", required_unless_present_any = ["disk", "vm_dir"])]
    from: Option<PathBuf>,
    /// Disk image, raw or qcow2
    #[arg(long, value_name = "FILE")]
    disk: Option<PathBuf>,
    /// Directory of a VM of Tart, such as ~/.tart/vms/base
    #[arg(long, value_name = "DIR", conflicts_with_all = ["disk", "kernel", "initramfs", "firmware"])]
    vm_dir: Option<PathBuf>,
    /// Format of the disk image [default: looked at]
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
    /// Hypervisor that runs it [default: tart for a VM of Tart and for macOS, else qemu]
    #[arg(long)]
    driver: Option<String>,
    /// Guest system [default: what the VM of Tart says, else linux]
    #[arg(long, value_parser = ["linux", "macos"])]
    os: Option<String>,
    /// Architecture [default: what the VM of Tart says, else the service's machine's]
    #[arg(long, value_parser = ["x86_64", "aarch64"])]
    arch: Option<String>,
    /// Cores of a vm that does not say [default: what the VM of Tart says, else 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory of a vm that does not say, in MiB [default: what the VM of Tart says, else 2048]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// How guests get their runner: a NoCloud volume read at boot, SSH, or Tart's guest agent [default: agent for Tart, else seed]
    #[arg(long, value_parser = ["seed", "ssh", "agent"])]
    handover: Option<String>,
    /// User that runs the runner in the guest, and that SSH logs in as [default: admin for Tart, else runner]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Private key that SSH logs in with
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// File with the password that SSH logs in with where there is no key; only its owner may read it
    #[arg(long, value_name = "FILE")]
    ssh_password_file: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Pull {
    /// The image, as host/namespace:tag or host/namespace@sha256:...
    image: String,
    /// Name to create vms from it with [default: the last part of the namespace]
    #[arg(long = "as", value_name = "NAME")]
    name: Option<String>,
    /// Cores of a vm that does not say [default: what the image says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Memory of a vm that does not say, in MiB [default: what the image says]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// How guests get their runner: SSH, or Tart's guest agent [default: agent]
    #[arg(long, value_parser = ["ssh", "agent"])]
    handover: Option<String>,
    /// User that runs the runner in the guest, and that SSH logs in as [default: admin]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Private key that SSH logs in with
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// File with the password that SSH logs in with where there is no key; only its owner may read it
    #[arg(long, value_name = "FILE")]
    ssh_password_file: Option<PathBuf>,
}

/// What image builds write beside a disk.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Manifest {
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
    ssh_key: Option<PathBuf>,
}

pub(super) async fn run(command: TemplateCommand, client: &Client, json: bool) -> Result<u8, Failure> {
    match command {
        TemplateCommand::Add(args) => {
            let name = args.name.clone();
            let value = client.post(&["templates"], &request(*args)?, &[]).await?;
            if json {
                output::json(&value)?;
            } else {
                let digest = value["digest"].as_str().unwrap_or_default();
                output::line(format!("{name}  {digest}").trim_end())?;
            }
        }
        TemplateCommand::Pull(args) => {
            let body = pull_request(*args);
            output::note(&format!(
                "pulling {}; this takes as long as the network needs",
                body["image"].as_str().unwrap_or_default()
            ));
            let value = client.post_patiently(&["templates"], &body).await?;
            if json {
                output::json(&value)?;
            } else {
                let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
                output::line(format!("{}  {}", text("name"), text("digest")).trim_end())?;
            }
        }
        TemplateCommand::List => list(client, json).await?,
        TemplateCommand::Show { name } => show(&name, client, json).await?,
        TemplateCommand::Delete { name } => {
            let value = client.delete(&["templates", &name], &[]).await?;
            if json {
                output::json(&if value.is_null() { json!({ "name": name }) } else { value })?;
            } else {
                output::line(&format!("{name}  deleted"))?;
            }
        }
    }
    Ok(exit::OK)
}

fn request(args: Add) -> Result<Value, Failure> {
    let (manifest, dir) = match &args.from {
        Some(from) => read_manifest(from)?,
        None => (Manifest::default(), PathBuf::new()),
    };
    // The service reads the files, and it has another working directory.
    let own = |path: Option<PathBuf>| path.map(|p| std::path::absolute(&p).unwrap_or(p));
    let beside = |path: Option<PathBuf>| own(path.map(|p| dir.join(p)));
    let vm_dir = own(args.vm_dir);
    let disk = if vm_dir.is_some() { None } else { own(args.disk).or(beside(manifest.disk)) };
    if disk.is_none() && vm_dir.is_none() {
        return Err(Failure::Usage("no disk: give --disk, --vm-dir, or a template.json that names one".into()));
    }
    let mut body = Map::new();
    // What is not given is left to the service, which knows its host.
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
    put("ssh_key", path(own(args.ssh_key).or(beside(manifest.ssh_key))));
    put("ssh_password_file", path(own(args.ssh_password_file)));
    put("cmdline", args.cmdline.or(manifest.cmdline).map(Value::from));
    put("cpus", args.cpus.or(manifest.cpus).map(Value::from));
    put("memory_mib", args.memory_mib.or(manifest.memory_mib).map(Value::from));
    put("handover", args.handover.or(manifest.handover).map(Value::from));
    put("user", args.user.or(manifest.ssh_user).map(Value::from));
    Ok(body.into())
}

fn pull_request(args: Pull) -> Value {
    let path = |p: Option<PathBuf>| p.map(|p| std::path::absolute(&p).unwrap_or(p).to_string_lossy().into_owned());
    let last = || {
        let path = args.image.split('@').next().unwrap_or_default();
        let last = path.rsplit('/').next().unwrap_or_default();
        last.split(':').next().unwrap_or_default().to_owned()
    };
    let mut body = json!({
        "image": args.image, "name": args.name.clone().unwrap_or_else(last), "cpus": args.cpus, "memory_mib": args.memory_mib,
        "handover": args.handover, "user": args.user, "ssh_key": path(args.ssh_key),
        "ssh_password_file": path(args.ssh_password_file),
    });
    if let Some(body) = body.as_object_mut() {
        body.retain(|_, value| !value.is_null());
    }
    body
}

fn read_manifest(from: &Path) -> Result<(Manifest, PathBuf), Failure> {
    let file = if from.is_dir() { from.join("template.json") } else { from.to_owned() };
    let wrong = |error: &dyn std::fmt::Display| Failure::Usage(format!("--from: {}: {error}", file.display()));
    let text = std::fs::read_to_string(&file).map_err(|error| wrong(&error))?;
    let manifest = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    Ok((manifest, file.parent().unwrap_or(Path::new("")).to_owned()))
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let items = client.list(&["templates"], &[]).await?;
    if json {
        return output::json(&json!({ "items": items }));
    }
    if items.is_empty() {
        output::note("no templates; `mayfly template add` registers one");
        return Ok(());
    }
    let mut rows = Vec::new();
    for item in &items {
        let t: TemplateView = client.view(item)?;
        rows.push(vec![
            t.name,
            t.os,
            t.arch,
            t.cpus.to_string(),
            t.memory_mib.to_string(),
            t.size_bytes.map(text::bytes).unwrap_or_default(),
            short_digest(&t.digest),
            t.created_at.map(text::age).unwrap_or_default(),
        ]);
    }
    let head = ["NAME", "OS", "ARCH", "CPUS", "MIB", "SIZE", "DIGEST", "AGE"];
    output::bytes(text::table(&head, &rows, output::width(), 0).as_bytes())
}

/// Enough to tell versions apart; the JSON has the whole.
fn short_digest(digest: &str) -> String {
    digest.trim_start_matches("sha256:").chars().take(12).collect()
}

async fn show(name: &str, client: &Client, json: bool) -> Result<(), Failure> {
    let value = client.get(&["templates", name], &[]).await?;
    if json {
        return output::json(&value);
    }
    let t: TemplateView = client.view(&value)?;
    let mut pairs = vec![
        ("name", t.name),
        ("digest", t.digest),
        ("guest", format!("{}, {}", t.os, t.arch)),
        ("driver", t.driver),
        ("size", format!("{} cores, {} MiB", t.cpus, t.memory_mib)),
    ];
    let disk: Vec<String> = [
        t.disk_format,
        t.disk_virtual_bytes.map(|n| format!("{} for the guest", text::bytes(n))),
        t.size_bytes.map(|n| format!("{} on the host", text::bytes(n))),
    ]
    .into_iter()
    .flatten()
    .collect();
    pairs.push(("disk", disk.join(", ")));
    if let Some(handover) = t.handover {
        pairs.push(("handover", handover));
    }
    if let Some(user) = t.user {
        pairs.push(("user", user));
    }
    if let Some(at) = t.created_at {
        pairs.push(("registered", format!("{} ({} ago)", text::time(at), text::age(at))));
    }
    output::bytes(text::fields(&pairs).as_bytes())
}
