//! The process that is the VM.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{
    cli::{Ended, Options},
    clones::Clones,
    control::{Bend, Control, Guest, state},
    description::{Description, Disk, Network, exists},
    kernel, leases,
    qemu::{Machine, Parts},
    words::{self, log, print},
};

const CRASH: &str = "Internal Virtualization error. The virtual machine stopped unexpectedly.";
const LOOK_AGAIN: Duration = Duration::from_millis(10);
const BRIDGE: &str = "com.apple.vm.networking";
const RUN: &str = "com.apple.security.virtualization";

/// A VM that passed validation.
struct Vm {
    is_macos: bool,
    disks: Vec<Disk>,
    networks: Vec<Network>,
    cpus: u64,
    ram: u64,
    serial: bool,
}

pub fn run(home: &Path, control: &Control, options: Options) -> Result<(), Ended> {
    let description = Description::read(&options)?;
    if let Some(path) = &options.save {
        let _ = std::fs::write(path, description.json.to_string());
    }
    let name = options.config.clone().unwrap_or_default();
    let bend = control.bend(home, &name).map_err(Ended::Double)?;
    let mut clones = Clones::default();
    let made = make(control, &options, &description, &bend, &mut clones);
    let vm = match made {
        Ok(vm) => vm,
        Err(ended) => {
            clones.remove();
            words::flush();
            return Err(ended);
        }
    };
    if let Some(path) = &options.pid_file {
        let _ = std::fs::write(path, format!("{}\n", std::process::id()));
    }
    // One thread, the one that the hypervisor is started from: the kernel ties a child to its parent's thread.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Ended::Double(format!("runtime: {e}")))?;
    let lived = runtime.block_on(live(home, control, &options, &vm, &bend, &mut clones));
    clones.remove();
    words::flush();
    if let Some(path) = &options.pid_file {
        let _ = std::fs::remove_file(path);
    }
    lived.map_err(Ended::Double)
}

fn make(
    control: &Control,
    options: &Options,
    description: &Description,
    bend: &Bend,
    clones: &mut Clones,
) -> Result<Vm, Ended> {
    let thrown = |text: String| Err(Ended::Exception(text));
    log("Creating instance ...");
    let is_macos = description.is_macos()?;
    description.check_payloads()?;
    let Some(cpus) = description.number("cpus").filter(|n| *n > 0) else {
        return thrown("Number of CPUs not specified".to_owned());
    };
    let Some(ram) = description.number("ram").filter(|n| *n > 0) else {
        return thrown("RAM size not specified".to_owned());
    };
    let networks = description.networks();
    for network in &networks {
        if network.kind.starts_with("br") {
            let interface = network.interface.as_deref().unwrap_or("en0");
            print(&format!("INFO: add bridged network on interface {interface}"));
            log(&format!(" + bridged network on {interface}"));
        } else {
            log(" + NAT network");
        }
        log(&format!(" + network: ether {}", network.mac));
    }
    let displays = description.displays();
    for (width, height, dpi) in &displays {
        log(&format!(" + display: {width} x {height} @ {dpi}"));
    }
    let mut disks = description.storage();
    for disk in &mut disks {
        let mode = if disk.read_only { "read-only" } else { "read-write" };
        print(&format!("INFO: add storage '{}' type '{}' {mode} ", disk.file, disk.kind));
        if disk.kind == "aux" {
            if exists(&disk.file) {
                log(&format!(" + existing aux storage {}", disk.file));
            } else {
                // Created, and not only when macOS is installed.
                log(&format!(" + creating aux storage {}", disk.file));
                if let Err(error) = std::fs::write(&disk.file, b"") {
                    return thrown(format!("Failed to create aux storage: {error}"));
                }
            }
        } else if !exists(&disk.file) {
            return thrown(words::framework_error(
                2,
                "Invalid disk image.",
                "Invalid disk image.",
                "The storage device attachment is invalid.",
            ));
        } else {
            log(&format!(" + disk image file://{} ({mode})", disk.file));
        }
        let is_cloned = matches!(disk.kind.as_str(), "disk" | "aux") && !disk.read_only && !disk.keep;
        if options.ephemeral && is_cloned {
            disk.file = clones.make(&disk.file)?;
        }
    }
    print(&format!("INFO: CPUs: {cpus}"));
    print(&format!("INFO: RAM {ram}"));
    log(&format!(" + {cpus} CPUs"));
    log(&format!(" + {ram} RAM"));
    if let Some(exception) = &bend.exception {
        return thrown(exception.clone());
    }
    let entitled = |name: &str| control.entitlements.iter().any(|entitlement| entitlement == name);
    let lacks = |name: &str| words::invalid(&format!("The process doesn’t have the “{name}” entitlement."));
    if !entitled(RUN) {
        return thrown(lacks(RUN));
    }
    for network in &networks {
        if network.kind.starts_with("br") && !entitled(BRIDGE) {
            return thrown(lacks(BRIDGE));
        }
        if !network.kind.starts_with("br") && !["nat", "unix"].contains(&network.kind.as_str()) {
            return thrown(words::invalid("The network device has no attachment."));
        }
    }
    if is_macos && displays.is_empty() {
        return thrown(words::invalid("The graphics device has no displays."));
    }
    if is_macos && !disks.iter().any(|disk| disk.kind == "aux") {
        return thrown(words::invalid("The platform has no auxiliary storage."));
    }
    log("validateWithError = OK");
    log(" init OK");
    Ok(Vm { is_macos, disks, networks, cpus, ram, serial: description.has_serial(options) })
}

/// The start was refused: an uncaught exception.
fn abort(error: &str, clones: &mut Clones) -> ! {
    log(&format!("start completed err={error}"));
    log(&format!("*** Terminating app due to uncaught exception 'VMStartError', reason: '{error}'"));
    clones.remove();
    std::process::abort();
}

async fn at(started: Instant, after_ms: Option<u64>) {
    match after_ms {
        Some(ms) => tokio::time::sleep_until((started + Duration::from_millis(ms)).into()).await,
        None => std::future::pending().await,
    }
}

/// Without a handler, these kill; the clones of an ephemeral VM are removed before that.
async fn dies(bend: &Bend, ephemeral: bool) -> Signal {
    // A handler that is installed for nothing would keep the signal from killing.
    if !bend.ignores_term && !ephemeral {
        return std::future::pending().await;
    }
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        return std::future::pending().await;
    };
    loop {
        let caught = tokio::select! {
            _ = term.recv() => Signal::TERM,
            _ = int.recv() => Signal::INT,
        };
        if !bend.ignores_term {
            return caught;
        }
    }
}

/// Dies by the signal. Its handler stays installed for the life of this program, so another one takes its place.
fn die_by(caught: Signal) -> String {
    use std::os::unix::process::CommandExt;
    let command = format!("kill -{} $$", caught.as_raw());
    format!("lives on: {}", std::process::Command::new("/bin/sh").args(["-c", &command]).exec())
}

async fn live(
    home: &Path,
    control: &Control,
    options: &Options,
    vm: &Vm,
    bend: &Bend,
    clones: &mut Clones,
) -> Result<(), String> {
    log("Starting instance...");
    let _lock = match vm.disks.iter().find(|disk| disk.kind == "aux") {
        Some(aux) => match kernel::lock_aux(Path::new(&aux.file)) {
            Ok(lock) => Some(lock),
            Err(error) => abort(&error, clones),
        },
        None => None,
    };
    sleep(Duration::from_millis(bend.start_after_ms)).await;
    // Ours until the process ends, however it ends.
    let _slot = match (bend.limit, vm.is_macos) {
        (true, _) => abort(&kernel::limit(), clones),
        (false, true) => match kernel::take_slot(home, control) {
            Ok(slot) => Some(slot),
            Err(error) => abort(&error, clones),
        },
        (false, false) => None,
    };
    if let Some(error) = &bend.start_error {
        abort(error, clones);
    }
    let lease = bend.lease.as_ref().unwrap_or(&control.lease);
    let leases = control.lease_file(home);
    let card = vm.networks.first().ok_or("a guest without a network is not simulated")?;
    let (mut machine, mut ip) = (None, None);
    match &control.guest {
        Guest::Inert => ip = Some(leases::address(&leases, 0)?),
        Guest::Qemu(qemu) => {
            let disk = vm.disks.iter().find(|disk| disk.kind == "disk").ok_or("no disk")?;
            for _ in 0..10 {
                let free = leases::address(&leases, qemu.ssh_port)?;
                let (cpus, ram) = (vm.cpus, vm.ram);
                let parts = Parts { disk: &disk.file, mac: &card.mac, cpus, ram, ip: &free, serial: vm.serial };
                // `None`: another program has taken the address.
                if let Some(started) = Machine::start(qemu, home, &parts).await? {
                    (machine, ip) = (Some(started), Some(free));
                    break;
                }
            }
        }
    }
    let ip = lease.ip.clone().or(ip).ok_or("every address that was free a moment ago is taken")?;
    log(" - start done");
    log(if vm.is_macos { "starting macOS in normal mode" } else { "starting Linux" });
    log("start completed err=nil");
    if vm.serial && machine.is_none() {
        words::serial(b"guest: hello\r\n");
    }
    if let Some(script) = &options.script {
        let command = format!("{script} {} {}", std::process::id(), card.mac);
        let _ = tokio::process::Command::new("/bin/bash").args(["-c", &command]).spawn();
    }
    let started = Instant::now();
    let granted = async {
        if !lease.none {
            sleep(Duration::from_millis(lease.after_ms)).await;
            leases::grant(home, &leases, lease, &card.mac, &ip)?;
        }
        std::future::pending::<Result<(), String>>().await
    };
    let off = state(home).join(format!("off-{}", std::process::id()));
    let asked = async {
        while !off.exists() {
            sleep(LOOK_AGAIN).await;
        }
    };
    let ephemeral = options.ephemeral && !clones.is_empty();
    let ended: Result<(), String> = tokio::select! {
        failed = granted => return failed,
        end = async {
            match &mut machine {
                Some(machine) => machine.ended().await,
                None => { asked.await; Ok(()) }
            }
        } => end,
        () = at(started, bend.power_off_after_ms) => Ok(()),
        () = at(started, bend.crash_after_ms) => Err(String::new()),
        caught = dies(bend, ephemeral) => {
            clones.remove();
            words::flush();
            return Err(die_by(caught));
        }
    };
    if let Some(machine) = &mut machine {
        machine.cut().await;
    }
    match ended {
        Ok(()) => log("VM <VZVirtualMachine: 0x600003d0c000> guest stopped"),
        Err(why) => {
            let error = words::framework_error(
                1,
                CRASH,
                "Internal Virtualization error.",
                "The virtual machine stopped unexpectedly.",
            );
            let why = if why.is_empty() { why } else { format!(" ({why})") };
            log(&format!("VM <VZVirtualMachine: 0x600003d0c000> didStopWithError: {error}{why}"));
        }
    }
    Ok(())
}
