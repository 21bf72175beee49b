//! Finds out whether guests really run here. A `/dev/kvm` that opens proves nothing: under some nested virtualisation guests hang. So
//! the proof is a guest that writes a word to its serial line.

use std::{path::Path, time::Duration};

use super::{super::probe_dir::ProbeDir, fault};
use crate::{
    domain::Arch,
    platform::process::{Command, OutputWatch, Stream},
};

/// File name of the guest's kernel.
pub const KERNEL: &str = "mayfly-probe.elf";
/// What it writes.
const WORD: &[u8] = b"mayfly";
/// With a hypervisor that works, it takes far less than a second.
const LIMIT: Duration = Duration::from_secs(10);

/// `Err` says why no guest runs. `scratch`: a directory for its kernel.
pub async fn run(binary: &Path, arch: Arch, scratch: &Path) -> Result<(), String> {
    if arch != Arch::X86_64 {
        // A kernel for another processor would have to be an image of Linux.
        return Ok(());
    }
    let dir = ProbeDir::make(scratch)
        .map_err(|error| format!("the directory {} cannot be written: {error}", scratch.display()))?;
    let kernel = dir.path().join(KERNEL);
    std::fs::write(&kernel, pvh_kernel(&guest_code())).map_err(|error| format!("{}: {error}", kernel.display()))?;
    let mut written = Vec::new();
    let ran = Command::new(binary, LIMIT)
        .arg("--kernel")
        .arg(&kernel)
        .args(["--cpus", "boot=1", "--memory", "size=64M", "--serial", "tty", "--console", "off"])
        .run_watched(|stream, piece| {
            if stream == Stream::Stdout {
                written.extend_from_slice(piece);
            }
            if says(&written) { OutputWatch::Stop } else { OutputWatch::Continue }
        })
        .await;
    match ran {
        Ok(output) if says(&output.stdout) => Ok(()),
        Ok(output) => Err(fault::shown(&output.stderr_tail)),
        Err(error) => Err(format!("a test guest gave no sign of life, although its hypervisor started: {error}")),
    }
}

fn says(written: &[u8]) -> bool {
    written.windows(WORD.len()).any(|window| window == WORD)
}

/// Writes the word to the first serial port, and powers off: by the port of Cloud Hypervisor, then by that of a PC. In 32-bit
/// protected mode, as kernels are entered by the PVH protocol.
fn guest_code() -> Vec<u8> {
    // mov edx, 0x3f8
    let mut code = vec![0xba, 0xf8, 0x03, 0x00, 0x00];
    for letter in WORD.iter().chain(b"\n") {
        // mov al, letter; out dx, al
        code.extend([0xb0, *letter, 0xee]);
    }
    // mov edx, 0x600; mov al, 0x34; out dx, al
    code.extend([0xba, 0x00, 0x06, 0x00, 0x00, 0xb0, 0x34, 0xee]);
    // mov edx, 0x604; mov ax, 0x2000; out dx, ax
    code.extend([0xba, 0x04, 0x06, 0x00, 0x00, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef]);
    // cli; hlt; jmp to hlt
    code.extend([0xfa, 0xf4, 0xeb, 0xfd]);
    code
}

/// An ELF file with this code at 1 MiB, and the note that says where a PVH kernel is entered.
pub fn pvh_kernel(code: &[u8]) -> Vec<u8> {
    const ADDRESS: u32 = 0x10_0000;
    const HEADER: usize = 64;
    const PROGRAM_HEADER: usize = 56;
    const NOTE_AT: usize = HEADER + 2 * PROGRAM_HEADER;
    const NOTE: usize = 12 + 4 + 4;
    const CODE_AT: usize = 4096;
    let mut file = Vec::new();
    // 64 bits, little-endian, an executable for x86-64.
    file.extend(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    file.extend(2u16.to_le_bytes());
    file.extend(62u16.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(u64::from(ADDRESS).to_le_bytes());
    file.extend((HEADER as u64).to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for value in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        file.extend(value.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, at: usize, address: u64, size: usize, align: u64| {
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for value in [at as u64, address, address, size as u64, size as u64, align] {
            file.extend(value.to_le_bytes());
        }
    };
    segment(1, 7, CODE_AT, u64::from(ADDRESS), code.len(), 4096);
    segment(4, 4, NOTE_AT, 0, NOTE, 4);
    // XEN_ELFNOTE_PHYS32_ENTRY
    for value in [4u32, 4, 18] {
        file.extend(value.to_le_bytes());
    }
    file.extend(*b"Xen\0");
    file.extend(ADDRESS.to_le_bytes());
    file.resize(CODE_AT, 0);
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn probed(script: &str) -> Result<(), String> {
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("cloud-hypervisor");
        std::fs::write(&binary, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&binary, std::fs::Permissions::from_mode(0o755)).unwrap();
        let ran = run(&binary, Arch::X86_64, dir.path()).await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the program is left");
        ran
    }

    #[tokio::test]
    async fn only_a_guest_that_writes_its_word_is_proof() {
        // It need not end.
        probed("test -s \"$2\" && echo mayfly && exec sleep 100").await.unwrap();
        let why =
            probed("echo 'Error: Cloud Hypervisor exited with the following error:\n  no hypervisor' >&2; exit 1")
                .await;
        assert_eq!(why.unwrap_err(), "no hypervisor");
        assert_eq!(probed("exit 0").await.unwrap_err(), "it gave no reason");
    }

    #[test]
    fn the_kernel_is_entered_by_its_note() {
        let kernel = pvh_kernel(&guest_code());
        assert_eq!(&kernel[..4], b"\x7fELF");
        assert_eq!(&kernel[64 + 112..][..20], b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0\0\0\x10\0");
        assert_eq!(kernel[4096..], guest_code());
    }
}
