//! What `tart run` refuses, and when: before it looks at anything, when it has seen the VM, when it builds the VM.

use std::fs::File;

use rustix::fs::{FlockOperation, flock};

use crate::{cli::RunOptions, config::Config, control::Control, failure::Failure, vm::Vm};

fn softnet(options: &RunOptions) -> bool {
    options.net_softnet
        || options.net_softnet_allow.is_some()
        || options.net_softnet_block.is_some()
        || options.net_softnet_expose.is_some()
        || options.net_softnet_control_fd.is_some()
}

/// Flags alone.
pub fn validate(options: &RunOptions, control: &Control) -> Result<(), Failure> {
    let unknown = |flag: &str| Err(Failure::Usage { text: format!("Unknown option '{flag}'"), command: Some("run") });
    if options.net_softnet_control_fd.is_some() && !control.at_least(2, 34) {
        return unknown("--net-softnet-control-fd");
    }
    if options.provisioning_opts.is_some() && !control.at_least(2, 35) {
        return unknown("--provisioning-opts");
    }
    if options.net_softnet_block.is_some() && !control.at_least(2, 30) {
        return unknown("--net-softnet-block");
    }
    let unsupported = [
        (options.vnc, "run --vnc"),
        (options.serial, "run --serial"),
        (options.serial_path.is_some(), "run --serial-path"),
        (options.recovery, "run --recovery"),
    ];
    let networks = [!options.net_bridged.is_empty(), softnet(options), options.net_host];
    if networks.iter().filter(|n| **n).count() > 1 {
        return Err(Failure::usage("--net-bridged, --net-softnet and --net-host are mutually exclusive"));
    }
    if options.vnc && options.vnc_experimental {
        return Err(Failure::usage("--vnc and --vnc-experimental are mutually exclusive"));
    }
    if options.graphics && options.no_graphics {
        return Err(Failure::usage("--graphics and --no-graphics are mutually exclusive"));
    }
    let default_view = !(options.no_graphics || options.vnc || options.vnc_experimental);
    if options.capture_system_keys && !default_view {
        return Err(Failure::usage("--captures-system-keys can only be used with the default VM view"));
    }
    if options.nested && !control.nested {
        return Err(Failure::usage("Nested virtualization is available for Mac with the M3 chip, and later."));
    }
    if options.disk.iter().any(|d| d.ends_with("-amd64.iso")) {
        return Err(Failure::usage(
            "Seems you have a disk targeting x86 architecture (hence amd64 in the name). Please use an 'arm64' version of the disk.",
        ));
    }
    if options.dir.len() > 1 && !options.dir.iter().all(|d| is_named(d)) {
        return Err(Failure::usage(
            "invalid --dir syntax: for multiple directory shares each one of them should be named",
        ));
    }
    match unsupported.iter().find(|(asked, _)| *asked) {
        Some((_, what)) => Err(Failure::not_simulated(what)),
        None => Ok(()),
    }
}

/// `[NAME:]PATH[:OPTS]`.
fn is_named(dir: &str) -> bool {
    let parts: Vec<&str> = dir.split(':').collect();
    let options = |o: &str| o.split(',').all(|o| o == "ro" || o.starts_with("tag="));
    match parts.as_slice() {
        [_] => false,
        [_, second] => !options(second),
        [_, _, third] => options(third),
        _ => dir.contains("://"),
    }
}

/// Flags together with the VM. All of it still counts as usage.
pub fn validate_for(options: &RunOptions, control: &Control, vm: &Vm) -> Result<(), Failure> {
    if options.suspendable && !vm.config()?.is_darwin() {
        return Err(Failure::usage("You can only suspend macOS VMs"));
    }
    if vm.config().is_ok_and(|c| c.disk_format == "asif") && !control.asif {
        return Err(Failure::usage("Disk format 'asif' is not supported on this system."));
    }
    let known = |name: &String| control.bridges.contains(name);
    if !options.net_bridged.iter().all(known) {
        let names: Vec<String> = control.bridges.iter().map(|b| format!("{b} (or \"{b}\")")).collect();
        return Err(Failure::usage(format!(
            "no bridge interfaces matched \"{}\", available interfaces: {}",
            options.net_bridged.join(", "),
            names.join(", ")
        )));
    }
    Ok(())
}

/// What comes out when the VM is put together.
pub fn check(options: &RunOptions, control: &Control, config: &Config) -> Result<(), Failure> {
    if config.arch != control.arch {
        return Err(Failure::Other("UnsupportedArchitectureError()".to_owned()));
    }
    if options.nested && config.is_darwin() {
        return Err(Failure::runtime("macOS virtual machines do not support nested virtualization"));
    }
    if (softnet(options) || options.net_host) && !control.softnet {
        return Err(Failure::runtime(
            "Softnet failed: root privileges are required to run and passwordless sudo was not available",
        ));
    }
    if let Some(opts) = &options.root_disk_opts {
        disk_options(opts)?;
    }
    for disk in options.disk.iter().filter(|d| !d.contains("://")) {
        let (path, opts) = disk.split_once(':').unwrap_or((disk, ""));
        disk_options(opts)?;
        let file = File::open(path).map_err(|e| Failure::io(path, &e))?;
        let read_only = opts.split(',').any(|o| o == "ro");
        if !read_only && flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(Failure::runtime(format!(
                "disk {path} seems to be already in use, unmount it first in Finder"
            )));
        }
    }
    for dir in options.dir.iter().filter(|d| !d.contains("://")) {
        let parts: Vec<&str> = dir.split(':').collect();
        let path = if is_named(dir) { parts.get(1) } else { parts.first() };
        if let Some(path) = path.filter(|p| !std::path::Path::new(p).is_dir()) {
            return Err(Failure::Other(format!("directory {path} does not exist")));
        }
    }
    Ok(())
}

/// Unknown words are ignored, unknown values are not.
fn disk_options(opts: &str) -> Result<(), Failure> {
    for option in opts.split(',') {
        let ok = match option.split_once('=') {
            Some(("sync", value)) => ["none", "fsync", "full"].contains(&value),
            Some(("caching", value)) => ["automatic", "cached", "uncached"].contains(&value),
            _ => true,
        };
        if !ok {
            return Err(Failure::runtime(format!("failed to parse disk options: {option}")));
        }
    }
    Ok(())
}
