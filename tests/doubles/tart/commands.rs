//! The commands that are short.

use std::{
    fs::{self, File},
    path::PathBuf,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    cli::{Change, Criteria},
    clone,
    config::{self, Config, Display},
    control::Control,
    failure::Failure,
    home::Home,
    locks, oci, output,
    vm::{self, State, Vm},
};

fn signal(name: &str, pid: i32, signal: Signal) -> Result<(), Failure> {
    let failed = |why: String| Failure::runtime(format!("failed to forcefully terminate the VM \"{name}\": {why}"));
    let pid = Pid::from_raw(pid).ok_or_else(|| failed(format!("pid {pid}")))?;
    match kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(e) => Err(failed(e.to_string())),
    }
}

/// A power cut by SIGINT to whoever holds the lock, and SIGKILL when that takes too long.
pub fn stop(home: &Home, name: &str, timeout: u64) -> Result<(), Failure> {
    let vm = Vm::open(home, name)?;
    match vm.state() {
        State::Suspended => fs::remove_file(vm.snapshot()).map_err(|e| Failure::io("failed to stop", &e)),
        State::Stopped => Err(Failure::not_running(name)),
        State::Running => {
            let Some(pid) = vm.holder() else { return Ok(()) };
            signal(name, pid, Signal::INT)?;
            let end = Instant::now() + Duration::from_secs(timeout);
            while Instant::now() < end {
                if vm.holder().is_none() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
            signal(name, pid, Signal::KILL)
        }
    }
}

pub fn suspend(home: &Home, name: &str) -> Result<(), Failure> {
    let vm = Vm::open(home, name)?;
    match vm.holder() {
        Some(pid) => signal(name, pid, Signal::USR1),
        None => Err(Failure::not_running(&format!("VM \"{name}\" is not running"))),
    }
}

pub fn delete(home: &Home, names: &[String], says_running: bool) -> Result<(), Failure> {
    for name in names {
        if let Some(remote) = oci::Remote::parse(name) {
            let path = remote.path(home);
            let removed = if path.is_symlink() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
            removed
                .map_err(|e| if missing(&e) { Failure::missing(name) } else { Failure::io("failed to delete", &e) })?;
            oci::collect_garbage(home).map_err(|e| Failure::io("failed to collect garbage", &e))?;
            continue;
        }
        let vm = home.vm(name);
        let running = || Failure::runtime(format!("VM \"{name}\" is running"));
        if says_running {
            return Err(running());
        }
        // A directory without a config.json has nothing to lock, so it "does not exist", and stays.
        let _lock = match locks::take(&vm.config_path()) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Err(running()),
            Err(e) if missing(&e) => return Err(Failure::missing(name)),
            Err(e) => return Err(Failure::io("failed to lock", &e)),
        };
        fs::remove_dir_all(&vm.dir).map_err(|e| Failure::io("failed to delete", &e))?;
    }
    Ok(())
}

fn missing(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// Without any look at locks, so under a VM that runs as well.
pub fn set(home: &Home, control: &Control, change: &Change) -> Result<(), Failure> {
    let vm = Vm::open(home, &change.name)?;
    let mut config = vm.config()?;
    let display = change.display.as_deref().map(parse_display).transpose()?;
    let too_little = |what: &str, min: u64| {
        Failure::Other(format!("LessThanMinimalResourcesError: VM should have {min} {what} at minimum"))
    };
    if let Some(cpu) = change.cpu {
        if config.is_darwin() && cpu < config.cpu_count_min {
            return Err(too_little("CPU cores", config.cpu_count_min));
        }
        config.cpu_count = cpu;
    }
    if let Some(mib) = change.memory {
        let bytes = mib << 20;
        if config.is_darwin() && bytes < config.memory_size_min {
            return Err(too_little("bytes of memory", config.memory_size_min));
        }
        config.memory_size = bytes;
    }
    if let Some(new) = display {
        if new.width > 0 {
            config.display.width = new.width;
        }
        if new.height > 0 {
            config.display.height = new.height;
        }
        config.display.unit = new.unit;
    }
    // Any call without one of the flags clears it.
    config.display_refit = match (change.display_refit, change.no_display_refit) {
        (true, _) => Some(true),
        (false, true) => Some(false),
        (false, false) => None,
    };
    if change.random_mac {
        config.mac_address = config::random_mac();
    }
    if change.random_serial && config.is_darwin() {
        config.ecid = Some(config::random_ecid());
    }
    config.write(&vm.config_path())?;
    if let Some(disk) = &change.disk {
        fs::copy(disk, vm.disk()).map_err(|e| Failure::io("failed to replace the disk", &e))?;
    }
    if let Some(gb) = change.disk_size {
        if config.disk_format == "asif" {
            return Err(Failure::not_simulated("set --disk-size of an ASIF disk"));
        }
        let _ = control;
        let disk = File::options().write(true).open(vm.disk()).map_err(|e| Failure::io("disk", &e))?;
        let (now, wanted) = (disk.metadata().map_err(|e| Failure::io("disk", &e))?.len(), gb * 1_000_000_000);
        if wanted < now {
            return Err(Failure::runtime(format!(
                "new disk size of {wanted} bytes should be larger than the current disk size of {now} bytes"
            )));
        }
        disk.set_len(wanted).map_err(|e| Failure::io("disk", &e))?;
    }
    Ok(())
}

fn parse_display(text: &str) -> Result<Display, Failure> {
    let (size, unit) = match (text.strip_suffix("px"), text.strip_suffix("pt")) {
        (Some(size), _) => (size, Some("px")),
        (_, Some(size)) => (size, Some("pt")),
        _ => (text, None),
    };
    let numbers = size.split_once('x').and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    let (width, height) = numbers.unwrap_or((0, 0));
    Ok(Display { width, height, unit: unit.map(str::to_owned) })
}

pub fn rename(home: &Home, from: &str, to: &str) -> Result<(), Failure> {
    let (old, new) = (home.vm(from), home.vm(to));
    if !old.initialised() {
        return Err(Failure::usage(format!("failed to rename a non-existent local VM: {from}")));
    }
    if new.initialised() {
        return Err(Failure::usage(format!(
            "failed to rename VM {from}, target VM {to} already exists, delete it first!"
        )));
    }
    fs::rename(old.dir, new.dir).map_err(|e| Failure::io("failed to rename", &e))
}

pub fn create(home: &Home, control: &Control, name: &str, disk_size: u64, asif: bool) -> Result<(), Failure> {
    if asif && !control.asif {
        return Err(Failure::usage("Disk format 'asif' is not supported on this system."));
    }
    let (stage, _held) = home.stage()?;
    let io = |e: std::io::Error| Failure::io("failed to create", &e);
    let config = Config {
        version: 1,
        os: "linux".to_owned(),
        arch: control.arch.clone(),
        ecid: None,
        hardware_model: None,
        cpu_count_min: 4,
        cpu_count: 4,
        memory_size_min: 4096 << 20,
        memory_size: 4096 << 20,
        mac_address: config::random_mac(),
        display: Display::default(),
        display_refit: None,
        disk_format: if asif { "asif" } else { "raw" }.to_owned(),
    };
    config.write(&stage.join("config.json"))?;
    File::create(stage.join("disk.img")).and_then(|f| f.set_len(disk_size * 1_000_000_000)).map_err(io)?;
    File::create(stage.join("nvram.bin")).and_then(|f| f.set_len(128 << 10)).map_err(io)?;
    let lock = home.lock()?;
    clone::place(home, &stage, name).map_err(io)?;
    drop(lock);
    Ok(())
}

pub fn prune(home: &Home, criteria: &Criteria) -> Result<(), Failure> {
    let io = |e: std::io::Error| Failure::io("failed to prune", &e);
    if criteria.gc {
        oci::collect_garbage(home).map_err(io)?;
    }
    let mut entries: Vec<Vm> = match criteria.entries.as_str() {
        "vms" => home.local()?.into_iter().filter(|vm| vm.state() != State::Running).collect(),
        "caches" => oci::cached(home).into_iter().map(|(_, vm)| vm).filter(|vm| !vm.dir.is_symlink()).collect(),
        other => {
            return Err(Failure::Usage {
                text: format!("The value '{other}' is invalid for '--entries <entries>'"),
                command: Some("prune"),
            });
        }
    };
    let mut doomed: Vec<PathBuf> = Vec::new();
    if let Some(days) = criteria.older_than {
        let oldest = crate::leases::now() - days as i64 * 86_400;
        doomed.extend(entries.iter().filter(|vm| vm.accessed() < oldest).map(|vm| vm.dir.clone()));
    }
    if let Some(gib) = criteria.space_budget.or(criteria.cache_budget) {
        let mut left = gib << 30;
        entries.sort_by_key(|vm| std::cmp::Reverse(vm.accessed()));
        for vm in &entries {
            match left.checked_sub(vm.allocated_size()) {
                Some(rest) => left = rest,
                None => doomed.push(vm.dir.clone()),
            }
        }
    }
    doomed.sort();
    doomed.dedup();
    doomed.iter().try_for_each(fs::remove_dir_all).map_err(io)
}

pub fn fqn(home: &Home, name: &str) -> Result<(), Failure> {
    let Some(remote) = oci::Remote::parse(name) else {
        Vm::open(home, name)?;
        output::line(name);
        return Ok(());
    };
    let path = remote.path(home);
    let digest = fs::canonicalize(&path).ok().and_then(|real| Some(real.file_name()?.to_str()?.to_owned()));
    match digest {
        Some(digest) if digest.starts_with("sha256:") => {
            vm::touch(&path);
            output::line(&format!("{}/{}@{digest}", remote.host, remote.namespace));
            Ok(())
        }
        _ => Err(Failure::runtime(format!("OCI storage error: {name} is not a digest and doesn't point to a digest"))),
    }
}

pub fn pull(home: &Home, name: &str) -> Result<(), Failure> {
    if home.vm(name).initialised() {
        output::line(&format!("\"{name}\" is a local image, nothing to pull here!"));
        return Ok(());
    }
    if oci::Remote::parse(name).is_none() {
        return Err(Failure::runtime(format!("failed to parse remote name: {name}")));
    }
    Err(Failure::not_simulated("pull"))
}
