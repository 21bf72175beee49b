//! Which accelerator runs guests here.
//!
//! An accelerator whose device opens may still hang its guests or abort, so the proof is a guest: a few machine instructions
//! that write a word to the serial line and power off. On x86 they are a boot sector, which also proves that the BIOS is
//! installed. The answer is remembered until something changes that it may depend on.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::args::{self, Accelerator, Machine};
use crate::{
    domain::Arch,
    drivers::command::{Command, CommandError},
};

/// A guest that works has done its three milliseconds of work long before. Emulation on a busy host needs more patience.
const ACCELERATED: Duration = Duration::from_secs(10);
const EMULATED: Duration = Duration::from_secs(60);
const MARKER: &str = "MAYFLY";

/// The name of the guest, by which `list` leaves it out.
pub const PROBE_NAME: &str = "mayfly-probe";

/// 16-bit code at 0x7c00: writes the marker to the port of the first serial line, then leaves through the debug exit device.
const X86_BOOT_SECTOR: &[u8] = &[
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, // mov ds, ax
    0xfc, // cld
    0xbe, 0x1d, 0x7c, // mov si, text
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xac, // next: lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x03, // jz done
    0xee, // out dx, al
    0xeb, 0xf8, // jmp next
    0xba, 0xf4, 0x00, // done: mov dx, 0xf4
    0xb0, 0x10, // mov al, 0x10
    0xee, // out dx, al
    0xfa, // cli
    0xf4, // halt: hlt
    0xeb, 0xfd, // jmp halt
    b'M', b'A', b'Y', b'F', b'L', b'Y', b'\n', 0, // text
];

/// Position-independent code: writes the marker to the UART of the `virt` board, then asks the firmware to power off.
const AARCH64_IMAGE: [u32; 12] = [
    0xd2a1_2001, // mov x1, #0x09000000
    0x1000_0122, // adr x2, text
    0x3840_1440, // next: ldrb w0, [x2], #1
    0x3400_0060, // cbz w0, done
    0xb900_0020, // str w0, [x1]
    0x17ff_fffd, // b next
    0xd2b0_8000, // done: mov x0, #0x84000000
    0xf280_0100, // movk x0, #8 (SYSTEM_OFF)
    0xd400_0002, // hvc #0
    0x1400_0000, // b .
    u32::from_le_bytes(*b"MAYF"),
    u32::from_le_bytes(*b"LY\n\0"),
];

/// What an earlier probe found, and what it depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub basis: Basis,
    pub accelerator: Accelerator,
    pub note: Option<String>,
}

/// Whatever an accelerator's working depends on. A change of any of it asks for a new probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Basis {
    pub program: PathBuf,
    pub version: String,
    pub arch: String,
    pub kernel: String,
    pub boot_id: Option<String>,
    pub device: Option<String>,
}

impl Basis {
    pub fn now(program: &Path, version: &str, arch: Arch) -> Self {
        let uname = rustix::system::uname();
        let (release, build) = (uname.release().to_string_lossy(), uname.version().to_string_lossy());
        Self {
            program: program.to_owned(),
            version: version.to_owned(),
            arch: arch.as_str().to_owned(),
            kernel: format!("{release} {build}"),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()),
            device: device_state(),
        }
    }
}

/// The device's owner and mode, and whether we may open it: joining the group `kvm` must not wait for a reboot.
fn device_state() -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(KVM_DEVICE).ok()?;
    Some(format!("{}:{} {:o} {} {:?}", meta.uid(), meta.gid(), meta.mode(), meta.ctime(), open_kvm().err()))
}

const KVM_DEVICE: &str = "/dev/kvm";

fn open_kvm() -> Result<(), String> {
    match std::fs::File::options().read(true).write(true).open(KVM_DEVICE) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("{KVM_DEVICE} cannot be opened ({error})")),
    }
}

/// The best accelerator that really runs a guest, and why it is not a better one. `Err` when none does.
pub async fn find(program: &Path, arch: Arch, scratch: &Path) -> Result<(Accelerator, Option<String>), String> {
    let better = if cfg!(target_os = "macos") { Accelerator::Hvf } else { Accelerator::Kvm };
    let device = match better {
        _ if Arch::of_this_host() != Some(arch) => {
            Err(format!("{} guests are foreign to this processor", arch.as_str()))
        }
        Accelerator::Kvm => open_kvm(),
        Accelerator::Hvf | Accelerator::Tcg => Ok(()),
    };
    let note = match device {
        Ok(()) => match boot(program, Machine { arch, accelerator: better }, scratch).await {
            Ok(()) => return Ok((better, None)),
            Err(why) => format!("a guest did not run under {}: {why}", better.as_str()),
        },
        Err(why) => why,
    };
    boot(program, Machine { arch, accelerator: Accelerator::Tcg }, scratch).await?;
    Ok((Accelerator::Tcg, Some(note)))
}

/// Starts the smallest guest there is and waits for its word.
pub async fn boot(program: &Path, machine: Machine, scratch: &Path) -> Result<(), String> {
    let image = match machine.arch {
        Arch::X86_64 => boot_disk(X86_BOOT_SECTOR),
        Arch::Aarch64 => AARCH64_IMAGE.iter().flat_map(|word| word.to_le_bytes()).collect(),
    };
    let dir = Scratch::new(scratch).map_err(|error| format!("no room for the probe's guest: {error}"))?;
    let file = dir.0.join("guest.img");
    std::fs::write(&file, image).map_err(|error| format!("no room for the probe's guest: {error}"))?;
    let file = file.to_str().ok_or("the data directory's path is not valid UTF-8")?;

    let patience = if machine.accelerator == Accelerator::Tcg { EMULATED } else { ACCELERATED };
    let command = Command::new(program, patience)
        .args(args::machine(machine, 1, 64))
        .args(["-name", PROBE_NAME, "-serial", "stdio"]);
    let command = match machine.arch {
        Arch::X86_64 => command
            .args(["-drive", &format!("if=none,id=d,format=raw,readonly=on,file={}", file.replace(',', ",,"))])
            .args(["-device", "virtio-blk-pci,drive=d", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]),
        Arch::Aarch64 => command.args(["-kernel", file]),
    };
    match command.run().await {
        Ok(output) if output.stdout_text().contains(MARKER) => Ok(()),
        Ok(output) => Err(format!("it ended with {} and said {:?}", output.status, first_line(&output.stderr_tail))),
        Err(CommandError::Deadline { seconds, .. }) => Err(format!("it hung for {seconds} s")),
        Err(error) => Err(error.to_string()),
    }
}

/// A disk that the BIOS takes for bootable. It reads whole tracks, so one sector alone would be too short.
pub fn boot_disk(code: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or("nothing")
}

/// A directory that goes when the probe does.
struct Scratch(PathBuf);

impl Scratch {
    fn new(within: &Path) -> std::io::Result<Self> {
        let dir = within.join(format!("probe-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What was remembered, if it still holds.
pub fn recall(file: &Path, basis: &Basis) -> Option<Remembered> {
    let remembered: Remembered = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (remembered.basis == *basis).then_some(remembered)
}

/// Forgetting costs a probe at the next start, so failing to remember is no error.
pub fn remember(file: &Path, remembered: &Remembered) {
    let written = serde_json::to_vec_pretty(remembered).map_err(std::io::Error::other).and_then(|json| {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let unfinished = file.with_extension("tmp");
        std::fs::write(&unfinished, json)?;
        std::fs::rename(&unfinished, file)
    });
    if let Err(error) = written {
        tracing::warn!(%error, file = %file.display(), "the accelerator probe could not be remembered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_answer_holds_until_its_basis_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/probe.json");
        let basis = Basis::now(Path::new("/usr/bin/qemu"), "QEMU emulator version 7.2.22", Arch::X86_64);
        assert_eq!(recall(&file, &basis), None);
        let remembered =
            Remembered { basis: basis.clone(), accelerator: Accelerator::Tcg, note: Some("because".to_owned()) };
        remember(&file, &remembered);
        assert_eq!(recall(&file, &basis), Some(remembered));
        assert_eq!(recall(&file, &Basis { version: "8".to_owned(), ..basis.clone() }), None);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file, &basis), None);
    }

    #[test]
    fn the_boot_sector_points_at_its_text() {
        let at = usize::from(u16::from_le_bytes([X86_BOOT_SECTOR[6], X86_BOOT_SECTOR[7]])) - 0x7c00;
        assert_eq!(&X86_BOOT_SECTOR[5..6], &[0xbe]);
        assert_eq!(&X86_BOOT_SECTOR[at - 1..at + 1], &[0xfd, b'M']);
    }
}
