//! `mayfly template import`

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::{
    super::{client::ApiClient, failure::CommandFailure, long_request, output, text},
    ready::Ready,
};

#[derive(Args)]
pub(in crate::cli) struct Import {
    /// The VM's directory, the vm.json, or the image, on the service's machine; an image also as s3://bucket/key; of the layout
    /// cloud-hypervisor the directory with snapshots and kernels, or one of its snapshots
    path: String,
    /// Layout of the source
    #[arg(long, value_parser = ["tart", "shoes-vz", "macosvm", "qcow2", "raw", "cloud-hypervisor"])]
    layout: String,
    /// Name of the template
    #[arg(long = "as", value_name = "NAME")]
    name: String,
    /// Whether the template keeps the machine's identity (shoes-vz, macosvm) [default: keep]
    #[arg(long, value_parser = ["keep", "regenerate"])]
    identity: Option<String>,
    /// Whether the template keeps the Ethernet address (macosvm) [default: regenerate]
    #[arg(long, value_parser = ["keep", "regenerate"])]
    mac: Option<String>,
    /// Import a suspended VM without its saved memory (tart)
    #[arg(long)]
    discard_memory: bool,
    /// Accept files outside of the vm.json's directory (macosvm)
    #[arg(long)]
    allow_outside: bool,
    /// Accept backing files outside of the image's directory (qcow2, cloud-hypervisor)
    #[arg(long)]
    allow_backing: bool,
    /// Extract the newest kernel and its initramfs from the disk (qcow2, raw, cloud-hypervisor)
    #[arg(long, conflicts_with_all = ["kernel", "initramfs", "firmware"])]
    extract_kernel: bool,
    /// Kernel to boot instead of the disk's boot loader [default: PATH.kernel, if it exists]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial ramdisk of that kernel [default: PATH.initramfs, if it exists]
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// UEFI firmware image [default: PATH.firmware, if it exists]
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Command line of the kernel [default with --extract-kernel: the root file system that was found, and a
    /// console]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Driver that runs it: tart or macosvm for the macOS layouts [default: tart for those, else qemu, or
    /// cloud-hypervisor with that layout]
    #[arg(long)]
    driver: Option<String>,
    /// Operating system of an image [default: linux]
    #[arg(long, value_parser = ["linux", "macos"])]
    os: Option<String>,
    /// Architecture of an image [default: that of the service's machine]
    #[arg(long, value_parser = ["x86_64", "aarch64"])]
    arch: Option<String>,
    /// Default number of cores of vms [default: that of the source]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: Option<u32>,
    /// Default memory of vms, in MiB [default: that of the source]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(32..))]
    memory_mib: Option<u32>,
    /// How guests are provisioned [default: agent with the driver tart, ssh with macosvm, else seed]
    #[arg(long, value_parser = ["seed", "ssh", "agent"])]
    handover: Option<String>,
    /// User that runs the runner in the guest [default: admin for macOS layouts, else runner]
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// What guests may reach: the guest API only, the internet, or everything that the host reaches [default: the
    /// strictest that the host can enforce and in which a vm's runner can work]
    #[arg(long, value_name = "MODE", value_parser = text::NETWORK_MODES)]
    network: Option<String>,
    #[command(flatten)]
    ready: Ready,
    /// File with the private key for the SSH login
    #[arg(long, value_name = "FILE")]
    ssh_key: Option<PathBuf>,
    /// File with the password for the SSH login, if there is no key; must be readable by its owner only
    #[arg(long, value_name = "FILE")]
    ssh_password_file: Option<PathBuf>,
}

pub(super) async fn run(args: Import, client: &ApiClient, json: bool) -> Result<(), CommandFailure> {
    let what = format!("importing {}; this takes as long as the disk or the network needs", args.path);
    let left = "this command waits no longer; `mayfly template list` shows whether the template was registered";
    let body = request(args);
    let value = long_request::answer(&what, left, client.post_patiently(&["templates", "import"], &body)).await?;
    if json {
        return output::json(&value);
    }
    notices(&value);
    let text = |key: &str| value["template"][key].as_str().unwrap_or_default().to_owned();
    output::line(format!("{}  {}", text("name"), text("digest")).trim_end())
}

/// On standard error, so that scripts that read the result are not disturbed.
pub(super) fn notices(value: &Value) {
    for notice in value["notices"].as_array().into_iter().flatten() {
        let text = |key: &str| notice[key].as_str().unwrap_or_default().to_owned();
        output::note(&format!("{} {}", text("field"), text("detail")));
    }
}

/// Makes a path absolute, because the service has another working directory. URLs stay as they are.
pub(super) fn place(path: &str) -> String {
    if path.contains("://") {
        return path.to_owned();
    }
    std::path::absolute(path).map_or_else(|_| path.to_owned(), |p| p.to_string_lossy().into_owned())
}

fn request(args: Import) -> Value {
    let path = |p: Option<PathBuf>| p.map(|p| place(&p.to_string_lossy()));
    let flag = |given: bool| given.then_some(true);
    let mut body = json!({
        "name": args.name, "layout": args.layout, "path": place(&args.path), "identity": args.identity, "mac": args.mac,
        "discard_memory": flag(args.discard_memory), "allow_outside": flag(args.allow_outside),
        "allow_backing": flag(args.allow_backing), "extract_kernel": flag(args.extract_kernel),
        "kernel": path(args.kernel), "initramfs": path(args.initramfs), "firmware": path(args.firmware),
        "cmdline": args.cmdline, "driver": args.driver, "os": args.os, "arch": args.arch, "cpus": args.cpus,
        "memory_mib": args.memory_mib, "handover": args.handover, "user": args.user, "network": args.network,
        "ready": args.ready.value(),
        "ssh_key": path(args.ssh_key), "ssh_password_file": path(args.ssh_password_file),
    });
    if let Some(body) = body.as_object_mut() {
        body.retain(|_, value| !value.is_null());
    }
    body
}
