//! Checks QEMU, its accelerator, and foreign QEMU guests.

use std::path::{Path, PathBuf};

use super::{
    finding::{Check, Finding, strange},
    modes,
    probe::{FileStatus, HostProbe, Probed, Ran, System, Unseen, line},
    setup::DoctorSetup,
};
use crate::{
    domain::Arch,
    drivers::{
        process::CommandLine,
        qemu::{
            AcceleratorChoice,
            accelerator_trial::{self, Experience, TrialVerdict},
            list,
            probe::{FOR_SPEED, Remembered},
            sandbox, version,
        },
    },
};

const PROGRAM: Check = Check::new("qemu.program", "QEMU", "qemu-system for this processor, which reports its version");
const IMG: Check = Check::new("qemu.img", "qemu-img", "the disk tool, which reports its version");
const KVM: Check = Check::new("qemu.kvm", "KVM", "/dev/kvm, readable and writable by this user");
const ACCELERATOR: Check =
    Check::new("qemu.accelerator", "Accelerator", "a guest ran under hardware acceleration on this boot");
const SANDBOX: Check =
    Check::new("qemu.sandbox", "QEMU's sandbox", "QEMU denies itself what no guest needs (-sandbox)");
const FOREIGN: Check = Check::new("qemu.foreign", "Foreign guests", "no QEMU guests but Mayfly's");

const DEVICE: &str = "/dev/kvm";
const INSTALL: &str =
    "install it:\n    sudo apt install qemu-system qemu-utils\n    sudo dnf install qemu-kvm qemu-img";

struct Tool {
    /// As it was looked for.
    name: PathBuf,
    path: Option<PathBuf>,
    version: Probed<String>,
}

struct QemuFacts {
    system: System,
    program: Tool,
    img: Tool,
    /// What QEMU answers to the question for its sandbox. `None`: it was not asked.
    sandbox: Option<Probed<Ran>>,
    device: Probed<FileStatus>,
    access: Probed<()>,
    remembered: Probed<Vec<u8>>,
    /// What the first guests under the accelerator showed.
    experience: Probed<Vec<u8>>,
    boot_id: Probed<Vec<u8>>,
    /// What a guest said that was started for this.
    booted: Option<Result<(String, Option<String>), String>>,
    processes: Vec<(i32, CommandLine)>,
}

pub async fn examine(probe: &dyn HostProbe, setup: &DoctorSetup) -> Vec<Finding> {
    let qemu = &setup.config.drivers.qemu;
    if !qemu.enabled {
        return vec![PROGRAM.not_needed("the driver is disabled (drivers.qemu.enabled)")];
    }
    let facts = look(probe, setup).await;
    if setup.tart.enabled && facts.program.path.is_none() && qemu.binary.is_none() {
        return vec![PROGRAM.not_needed("not installed; Tart runs macOS and Linux guests without it")];
    }
    let mut findings =
        vec![program(&facts.program, PROGRAM, "QEMU emulator version"), program(&facts.img, IMG, "qemu-img version")];
    if facts.system == System::Linux {
        findings.push(kvm(&facts, qemu.accelerator));
        findings.extend(facts.sandbox.as_ref().map(sandbox));
    }
    findings.push(accelerator(&facts, qemu.accelerator));
    findings.push(modes::qemu(setup));
    findings.push(foreign(&facts, setup));
    findings
}

async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> QemuFacts {
    let qemu = &setup.config.drivers.qemu;
    let usual =
        Arch::of_this_host().map_or_else(|| "qemu-system".into(), |arch| format!("qemu-system-{}", arch.as_str()));
    let binary = qemu.binary.clone().unwrap_or_else(|| usual.into());
    let img = qemu.qemu_img.clone().unwrap_or_else(|| "qemu-img".into());
    let program = async {
        let program = tool(probe, binary).await;
        let booted = match &program.path {
            Some(path) if setup.boot_guest => Some(probe.boot_guest(path).await),
            _ => None,
        };
        let sandbox = match &program.path {
            Some(path) if probe.system() == System::Linux => Some(probe.run(path, &sandbox::QUESTION, &[]).await),
            _ => None,
        };
        (program, booted, sandbox)
    };
    let remembered = setup.at("qemu-probe.json");
    let experience = accelerator_trial::file(&remembered);
    let device = Path::new(DEVICE);
    let ((program, booted, sandbox), img, device, access, remembered, experience, boot_id, processes) = tokio::join!(
        program,
        tool(probe, img),
        probe.entry(device),
        probe.may_read_and_write(device),
        probe.read(&remembered, 64 << 10),
        probe.read(&experience, 64 << 10),
        probe.read(Path::new("/proc/sys/kernel/random/boot_id"), 64),
        probe.processes(),
    );
    QemuFacts {
        system: probe.system(),
        program,
        img,
        sandbox,
        device,
        access,
        remembered,
        experience,
        boot_id,
        booted,
        processes,
    }
}

async fn tool(probe: &dyn HostProbe, name: PathBuf) -> Tool {
    let path = probe.find_program(&name);
    let version = match &path {
        Some(path) => line(&probe.run(path, &["--version"], &[]).await),
        None => Err(Unseen::Absent),
    };
    Tool { name, path, version }
}

fn program(tool: &Tool, check: Check, says: &str) -> Finding {
    let name = tool.name.display();
    let version = match &tool.version {
        Ok(version) => version.lines().next().unwrap_or_default(),
        Err(Unseen::Absent) => return check.fail(format!("{name} is not installed here"), INSTALL),
        Err(why) => return check.fail(format!("{name} does not report its version: {why}"), "install it again"),
    };
    match version.strip_prefix(says) {
        Some(version) if check.id == PROGRAM.id && version::check(version.trim()).is_err() => {
            let version = version.split_whitespace().next().unwrap_or_default();
            check.fail(format!("{version} is too old"), "install QEMU 7.2 or later (Debian 12, Ubuntu 24.04)")
        }
        // The distribution's suffix is not needed.
        Some(version) => check.ok(version.split_whitespace().next().unwrap_or_default().to_owned()),
        None => check.fail(strange(&format!("{says:?} from {name}"), version), "install it again"),
    }
}

fn sandbox(asked: &Probed<Ran>) -> Finding {
    match asked {
        Ok(ran) if ran.succeeded() && ran.stdout.starts_with(sandbox::ANSWER_BEGINS) => SANDBOX.ok("guests run in it"),
        Ok(ran) if ran.succeeded() => SANDBOX.could_not_look(strange("a list of machines from QEMU", &ran.stdout)),
        Ok(ran) => {
            let said = ran.words().lines().next().unwrap_or_default();
            SANDBOX.warn(format!("QEMU runs without one, because it refuses -sandbox: {said}"), sandbox::REMEDY)
        }
        Err(why) => SANDBOX.could_not_look(why),
    }
}

fn kvm(facts: &QemuFacts, choice: AcceleratorChoice) -> Finding {
    if choice == AcceleratorChoice::Tcg {
        return KVM.not_needed("emulation is configured (drivers.qemu.accelerator)");
    }
    const SLOW: &str = "guests are emulated, which is ten to thirty times slower";
    let say = |found: String, remedy: &str| {
        // Not configured: emulation is the fallback.
        if choice == AcceleratorChoice::Kvm {
            KVM.fail(found, remedy)
        } else {
            KVM.warn(format!("{found}: {SLOW}"), remedy)
        }
    };
    match (&facts.device, &facts.access) {
        (Ok(_), Ok(())) => KVM.ok("this user has access"),
        (Err(Unseen::Absent), _) => say(
            "there is no /dev/kvm".to_owned(),
            "enable virtualisation in the firmware, or nested virtualisation where this machine is itself a guest; \
             then load the module:\n    sudo modprobe kvm_intel || sudo modprobe kvm_amd",
        ),
        (Ok(_), Err(Unseen::Denied)) => say(
            "this user has no access to /dev/kvm".to_owned(),
            "add the service's user to its group, and restart the service:\n    sudo usermod -aG kvm \"$USER\"",
        ),
        (Err(why), _) | (_, Err(why)) => KVM.could_not_look(why),
    }
}

fn accelerator(facts: &QemuFacts, choice: AcceleratorChoice) -> Finding {
    if choice != AcceleratorChoice::Auto {
        return ACCELERATOR.ok(format!("{}, as configured", choice.as_str()));
    }
    match &facts.booted {
        Some(Ok((accelerator, note))) => return ran_under(accelerator, note.as_deref(), "a guest just ran under"),
        Some(Err(why)) => {
            return ACCELERATOR.fail(format!("no guest runs: {why}"), "reinstall QEMU and its firmware");
        }
        None => {}
    }
    const ASK: &str = "the service tests it when it starts; or run: mayfly doctor --probe";
    let remembered = match &facts.remembered {
        Ok(bytes) => bytes,
        Err(Unseen::Absent) => {
            return ACCELERATOR.not_needed(format!("not known yet: {ASK}"));
        }
        Err(why) => return ACCELERATOR.could_not_look(why),
    };
    let Ok(remembered) = serde_json::from_slice::<Remembered>(remembered) else {
        let found = strange("the cached result of a probe", &String::from_utf8_lossy(remembered));
        return ACCELERATOR.could_not_look(found);
    };
    // The result is valid only for one boot and one QEMU; the next start of the service probes again.
    let boot_id = facts.boot_id.as_ref().ok().map(|id| String::from_utf8_lossy(id).trim().to_owned());
    let version = facts.program.version.as_ref().ok().and_then(|v| v.lines().next());
    let earlier = remembered.accelerator.as_str();
    if !remembered.is_of_this_probe() {
        return ACCELERATOR.not_needed(format!("{earlier}, tested by another version of Mayfly: {ASK}"));
    }
    if remembered.basis.boot_id != boot_id || version != Some(remembered.basis.version.as_str()) {
        return ACCELERATOR.not_needed(format!("{earlier} on an earlier boot or with another QEMU: {ASK}"));
    }
    let known = facts.experience.as_ref().ok().and_then(|bytes| serde_json::from_slice::<Experience>(bytes).ok());
    match known.filter(|known| known.basis == remembered.basis && known.accelerator == remembered.accelerator) {
        Some(Experience { verdict: TrialVerdict::SetAside { why }, accelerator, .. }) => ACCELERATOR.warn(
            format!("{} passed its probe but was disabled, because {why}: guests are emulated", accelerator.as_str()),
            "use a machine with KVM or nested virtualisation. The accelerator is tried again after a reboot and with another \
             kernel or QEMU; to try it now, remove qemu-accelerator.json from the data directory and restart the service",
        ),
        Some(Experience { verdict: TrialVerdict::Proven, .. }) | None => {
            ran_under(remembered.accelerator.as_str(), remembered.note.as_deref(), "a guest ran under")
        }
    }
}

fn ran_under(accelerator: &str, note: Option<&str>, how: &str) -> Finding {
    const REMEDY: &str = "use a machine with KVM or nested virtualisation, and give the service access to /dev/kvm";
    match note {
        None if accelerator != "tcg" => ACCELERATOR.ok(format!("{how} {accelerator}")),
        note => {
            let note = note.unwrap_or("emulation, ten to thirty times slower than hardware");
            let (why, remedy) = note.split_once(FOR_SPEED).unwrap_or((note, REMEDY));
            ACCELERATOR.warn(format!("{how} {accelerator}: {why}"), remedy)
        }
    }
}

fn foreign(facts: &QemuFacts, setup: &DoctorSetup) -> Finding {
    // There is at least this process.
    if facts.processes.is_empty() {
        return FOREIGN.could_not_look("no process is visible");
    }
    let (ours, foreign) = list::by_command_lines(&setup.at("instances"), &facts.processes);
    let ours = match ours.len() {
        0 => "Mayfly runs no guest".to_owned(),
        1 => "Mayfly runs 1 guest".to_owned(),
        n => format!("Mayfly runs {n} guests"),
    };
    if foreign.is_empty() {
        return FOREIGN.ok(format!("none; {ours}"));
    }
    let names: Vec<&str> = foreign.iter().take(3).map(|guest| guest.name.as_str()).collect();
    let more = if foreign.len() > names.len() { ", …" } else { "" };
    let memory: u64 = foreign.iter().map(|guest| u64::from(guest.memory_mib)).sum();
    let found = format!("{} ({}{more}) with {memory} MiB; {ours}", foreign.len(), names.join(", "));
    let remedy = if setup.config.slots.count_foreign {
        "they occupy slots; to exclude them:\n    slots.count_foreign = false"
    } else {
        "their memory and cores are not counted (slots.count_foreign is false)"
    };
    FOREIGN.warn(found, remedy)
}
