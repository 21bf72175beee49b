//! The command line of QEMU: a pure function of the spec, the paths and the machine.
//!
//! QEMU splits option values at commas, and a literal comma is doubled.

use std::path::Path;

use super::paths::QemuPaths;
use crate::{
    domain::{Arch, gateway::GUEST_MAC},
    drivers::InstanceSpec,
};

/// QEMU denies itself, by the kernel's filter of system calls: obsolete calls, other users' rights, new programs, and
/// changes of its own limits and priority.
pub const SANDBOX: [&str; 2] = ["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, strum::IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum Accelerator {
    Kvm,
    Hvf,
    Tcg,
}

impl Accelerator {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    pub arch: Arch,
    pub accelerator: Accelerator,
    /// Whether QEMU confines itself. On Linux it can, unless it was built without.
    pub sandbox: bool,
}

/// Machine, accelerator and processor: a probe has to share these with a real start.
pub fn machine(machine: MachineSpec, cpus: u32, memory_mib: u32) -> Vec<String> {
    let board = match machine.arch {
        Arch::X86_64 => "q35",
        // The default interrupt controller of this board supports only eight processors.
        Arch::Aarch64 if cpus > 8 => "virt,gic-version=3",
        Arch::Aarch64 => "virt",
    };
    let accelerator = match machine.accelerator {
        Accelerator::Tcg => format!("tcg,thread=multi,tb-size={}", translation_cache_mib(memory_mib)),
        other => other.as_str().to_owned(),
    };
    let processor = match (machine.accelerator, machine.arch) {
        (Accelerator::Kvm | Accelerator::Hvf, _) => "host",
        (Accelerator::Tcg, Arch::X86_64) => "max",
        // The architected pointer authentication algorithm halves the speed of an emulated guest.
        (Accelerator::Tcg, Arch::Aarch64) => "max,pauth-impdef=on",
    };
    let mut args = if machine.sandbox { words(&SANDBOX) } else { Vec::new() };
    args.extend(words(&["-nodefaults", "-no-user-config", "-display", "none", "-M", board]));
    args.extend(words(&["-accel", &accelerator, "-cpu", processor]));
    args.extend(words(&["-smp", &cpus.to_string(), "-m", &memory_mib.to_string(), "-no-reboot"]));
    args
}

/// The cache of translated code adds to the guest's memory, so a small guest gets a small cache.
fn translation_cache_mib(memory_mib: u32) -> u32 {
    match memory_mib {
        0..256 => 64,
        256..1024 => 128,
        1024..4096 => 256,
        _ => 512,
    }
}

/// The command line after the program's name. `None` if a path is not valid UTF-8.
pub fn instance(spec: &InstanceSpec, paths: &QemuPaths, on: MachineSpec) -> Option<Vec<String>> {
    // The same for every attempt, because the guest sees it as its machine id.
    let id = spec.name.vm_id();
    let mut args = machine(on, spec.cpus, spec.memory_mib);

    // Only Linux can rename a process, and QEMU refuses to start elsewhere.
    let process = if cfg!(target_os = "linux") { ",process=mayfly-vm" } else { "" };
    args.extend(words(&["-name", &format!("{}{process}", spec.name), "-uuid", &id.to_string()]));
    // The guest's processors stay stopped until the record of its end is ensured.
    args.extend(words(&["-S", "-pidfile", paths.pid().to_str()?]));

    let socket = |id: &str, path: &Path| Some(format!("socket,id={id},path={},server=on,wait=off", escaped(path)?));
    args.extend(words(&["-chardev", &socket("qmp", &paths.qmp())?, "-mon", "chardev=qmp,mode=control"]));
    args.extend(words(&["-chardev", &socket("live", &paths.live())?, "-mon", "chardev=live,mode=control"]));
    let log = escaped(&paths.watch_log())?;
    let watch = format!("{},logfile={log},logappend=off", socket("watch", &paths.watch())?);
    args.extend(words(&["-chardev", &watch, "-mon", "chardev=watch,mode=control"]));

    // Appends, so that a long log can be truncated while the guest continues to write.
    let console = format!("file,id=console,path={},append=on", escaped(&paths.console())?);
    args.extend(words(&["-chardev", &console, "-serial", "chardev:console"]));

    // An unsafe cache loses data if the host crashes, but then this disk is discarded anyway. A guest whose write
    // finds the host's disk full is paused instead of getting an I/O error, and is resumed when there is space.
    let disk = escaped(&paths.disk())?;
    let drive = format!("if=none,id=disk,file={disk},format=qcow2,cache=unsafe,discard=unmap,werror=enospc");
    args.extend(words(&["-drive", &drive]));
    args.extend(words(&["-device", "virtio-blk-pci,drive=disk"]));
    if spec.seed.is_some() {
        let seed = escaped(&paths.seed())?;
        args.extend(words(&["-drive", &format!("if=none,id=seed,file={seed},format=raw,readonly=on")]));
        args.extend(words(&["-device", "virtio-blk-pci,drive=seed"]));
    }
    args.extend(words(&["-device", "virtio-rng-pci", "-device", "pvpanic-pci"]));

    // As a server, QEMU takes another connection after the end of one, so a new gateway can take the place of another.
    let link = escaped(&paths.gateway().link())?;
    args.extend(words(&["-netdev", &format!("stream,id=n0,server=on,addr.type=unix,addr.path={link}")]));
    // Without a ROM the guest cannot boot from the network, and the package with the ROM is not needed.
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    args.extend(words(&["-device", &format!("virtio-net-pci,netdev=n0,mac={mac},romfile=")]));

    if let Some(kernel) = &spec.files.kernel {
        args.extend(words(&["-kernel", kernel.to_str()?]));
        if let Some(initramfs) = &spec.files.initramfs {
            args.extend(words(&["-initrd", initramfs.to_str()?]));
        }
        if let Some(cmdline) = &spec.cmdline {
            args.extend(words(&["-append", cmdline]));
        }
    } else if let Some(firmware) = &spec.files.firmware {
        args.extend(words(&["-bios", firmware.to_str()?]));
    }
    Some(args)
}

fn escaped(path: &Path) -> Option<String> {
    path.to_str().map(doubled)
}

fn doubled(text: &str) -> String {
    text.replace(',', ",,")
}

fn words(args: &[&str]) -> Vec<String> {
    args.iter().map(|a| (*a).to_owned()).collect()
}

/// Processors and memory (MiB) of a running QEMU, from its `-smp` and `-m`.
pub fn shape(smp: Option<&str>, memory: Option<&str>) -> (u32, u32) {
    (smp.map_or(Some(1), parse_smp).unwrap_or(1), memory.map_or(Some(128), parse_memory).unwrap_or(0))
}

/// `4`, `4,sockets=1`, `cpus=4`, `sockets=2,cores=4,threads=2`.
fn parse_smp(value: &str) -> Option<u32> {
    let mut product = 1u32;
    for (i, part) in value.split(',').enumerate() {
        match part.split_once('=') {
            None if i == 0 => return part.parse().ok(),
            Some(("cpus", n)) => return n.parse().ok(),
            Some(("sockets" | "dies" | "clusters" | "cores" | "threads", n)) => {
                product = product.checked_mul(n.parse().ok()?)?;
            }
            _ => {}
        }
    }
    Some(product)
}

/// `4096`, `4G`, `4g,slots=2`, `size=4096M`.
fn parse_memory(value: &str) -> Option<u32> {
    let size = value.split(',').enumerate().find_map(|(i, part)| match part.split_once('=') {
        None if i == 0 => Some(part),
        Some(("size", size)) => Some(size),
        _ => None,
    })?;
    let digits = size.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok()?;
    let mib = match size[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "m" | "mib" => number,
        "k" | "kib" => number / 1024.0,
        "b" => number / f64::from(1 << 20),
        "g" | "gib" => number * 1024.0,
        "t" | "tib" => number * 1024.0 * 1024.0,
        _ => return None,
    };
    (mib.is_finite() && (0.0..=f64::from(u32::MAX)).contains(&mib)).then_some(mib as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            GuestOs, NetworkMode, NetworkPolicy, VmId,
            template::{DiskFormat, TemplateFiles},
        },
        drivers::{GuestNetwork, Seed},
    };

    fn spec() -> InstanceSpec {
        let id: VmId = "01933b6e-8f2a-7c31-9d42-000000000001".parse().unwrap();
        InstanceSpec {
            name: id.instance(),
            os: GuestOs::Linux,
            arch: Arch::X86_64,
            cpus: 2,
            memory_mib: 512,
            disk_format: DiskFormat::Qcow2,
            files: TemplateFiles {
                disk: "/t/disk.qcow2".into(),
                kernel: Some("/t/vmlinuz".into()),
                initramfs: Some("/t/initramfs.img".into()),
                firmware: None,
                ssh_key: None,
                ..TemplateFiles::default()
            },
            cmdline: Some("console=ttyS0 quiet".to_owned()),
            seed: Some(Seed { volume: vec![0; 512] }),
            network: GuestNetwork {
                policy: NetworkPolicy { mode: NetworkMode::Isolated, allow: Vec::new() },
                guest_api: "/run/api.sock".into(),
            },
        }
    }

    fn arguments(spec: &InstanceSpec, on: MachineSpec) -> Vec<String> {
        instance(spec, &QemuPaths::new(Path::new("/d,d"), &spec.name), on).unwrap()
    }

    fn value<'a>(args: &'a [String], option: &str) -> Vec<&'a str> {
        args.windows(2).filter(|w| w[0] == option).map(|w| w[1].as_str()).collect()
    }

    const KVM: MachineSpec = MachineSpec { arch: Arch::X86_64, accelerator: Accelerator::Kvm, sandbox: false };
    const TCG: MachineSpec = MachineSpec { arch: Arch::X86_64, accelerator: Accelerator::Tcg, sandbox: true };

    #[test]
    fn a_kernel_boot_in_full() {
        let dir = "/d,,d/mayfly-01933b6e-8f2a-7c31-9d42-000000000001";
        let plain = "/d,d/mayfly-01933b6e-8f2a-7c31-9d42-000000000001";
        let process = if cfg!(target_os = "linux") { ",process=mayfly-vm" } else { "" };
        let expected = [
            "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
            "-nodefaults -no-user-config -display none -M q35 -accel tcg,thread=multi,tb-size=128 -cpu max -smp 2 -m 512 -no-reboot",
            &format!(
                "-name mayfly-01933b6e-8f2a-7c31-9d42-000000000001{process} -uuid 01933b6e-8f2a-7c31-9d42-000000000001"
            ),
            &format!("-S -pidfile {plain}/qemu.pid"),
            &format!("-chardev socket,id=qmp,path={dir}/qmp.sock,server=on,wait=off -mon chardev=qmp,mode=control"),
            &format!("-chardev socket,id=live,path={dir}/live.sock,server=on,wait=off -mon chardev=live,mode=control"),
            &format!(
                "-chardev socket,id=watch,path={dir}/watch.sock,server=on,wait=off,logfile={dir}/watch.log,logappend=off"
            ),
            "-mon chardev=watch,mode=control",
            &format!("-chardev file,id=console,path={dir}/console.log,append=on -serial chardev:console"),
            &format!(
                "-drive if=none,id=disk,file={dir}/disk.qcow2,format=qcow2,cache=unsafe,discard=unmap,werror=enospc"
            ),
            "-device virtio-blk-pci,drive=disk",
            &format!(
                "-drive if=none,id=seed,file={dir}/seed.img,format=raw,readonly=on -device virtio-blk-pci,drive=seed"
            ),
            "-device virtio-rng-pci -device pvpanic-pci",
            &format!("-netdev stream,id=n0,server=on,addr.type=unix,addr.path={dir}/net.sock"),
            "-device virtio-net-pci,netdev=n0,mac=52:54:00:12:34:56,romfile= -kernel /t/vmlinuz -initrd /t/initramfs.img -append console=ttyS0 quiet",
        ];
        assert_eq!(arguments(&spec(), TCG).join(" "), expected.join(" "));
    }

    #[test]
    fn a_disk_boot_has_no_kernel_options() {
        let mut spec = spec();
        spec.files.kernel = None;
        spec.files.initramfs = None;
        spec.seed = None;
        let args = arguments(&spec, KVM);
        assert!(!args.iter().any(|a| ["-kernel", "-initrd", "-append", "-bios"].contains(&a.as_str())));
        assert!(!args.join(" ").contains("seed"));
        assert_eq!(value(&args, "-accel"), ["kvm"]);
        assert_eq!(value(&args, "-cpu"), ["host"]);
        spec.files.firmware = Some("/t/fw,1".into());
        assert_eq!(value(&arguments(&spec, KVM), "-bios"), ["/t/fw,1"]);
    }

    #[test]
    fn arm_has_another_board() {
        let arm = |accelerator| MachineSpec { arch: Arch::Aarch64, accelerator, sandbox: true };
        let args = arguments(&spec(), arm(Accelerator::Hvf));
        assert_eq!((value(&args, "-M"), value(&args, "-cpu")), (vec!["virt"], vec!["host"]));
        let mut many = spec();
        many.cpus = 12;
        let args = arguments(&many, arm(Accelerator::Tcg));
        assert_eq!(
            (value(&args, "-M"), value(&args, "-cpu")),
            (vec!["virt,gic-version=3"], vec!["max,pauth-impdef=on"])
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_path_that_is_no_text_is_refused() {
        use std::os::unix::ffi::OsStrExt;
        let mut spec = spec();
        spec.files.kernel = Some(std::ffi::OsStr::from_bytes(b"/t/\xff").into());
        assert_eq!(instance(&spec, &QemuPaths::new(Path::new("/d"), &spec.name), TCG), None);
    }

    #[test]
    fn the_shape_of_foreign_guests_is_read() {
        assert_eq!(shape(None, None), (1, 128));
        assert_eq!(shape(Some("4"), Some("4096")), (4, 4096));
        assert_eq!(shape(Some("4,sockets=1"), Some("4G")), (4, 4096));
        assert_eq!(shape(Some("cpus=6,maxcpus=8"), Some("size=1.5g,slots=2")), (6, 1536));
        assert_eq!(shape(Some("sockets=2,cores=4,threads=2"), Some("524288k")), (16, 512));
        assert_eq!(shape(Some("rubbish"), Some("rubbish")), (1, 0));
    }
}
