//! The test guest of the probe: its program, its serial output, and one run of it.
//!
//! The program does what kernels do while they boot, and writes one letter for each completed stage. Then it does a
//! fixed amount of work several times, between marks. The marks are timed here, with the host's clock, because the
//! guest's clock may be wrong under a broken accelerator.

use std::{path::Path, time::Duration};

use tokio::time::Instant;

use super::super::{
    super::probe_dir::ProbeDir,
    args::{self, MachineSpec},
};
use crate::{
    domain::Arch,
    platform::{
        clock,
        process::{Command, CommandError, OutputWatch, Stream},
    },
};

/// The name of the guest, by which `list` excludes it.
pub const PROBE_NAME: &str = "mayfly-probe";

const MARKER: &[u8] = b"MAYFLY";
/// Memory of the guest, in MiB. Its program depends on the layout.
const MEMORY_MIB: u32 = 64;
/// Limits of what is read from QEMU's standard error, and of what is shown of one line.
const STDERR: usize = 4 << 10;
const WORDS: usize = 200;

/// A program and its output.
pub struct ProbeProgram {
    pub image: &'static [u8],
    /// Its stages in order: the letter, and the work before it.
    pub stages: &'static [(u8, &'static str)],
}

pub fn program(arch: Arch) -> ProbeProgram {
    match arch {
        Arch::X86_64 => ProbeProgram { image: include_bytes!("x86_64.bin"), stages: X86_64 },
        Arch::Aarch64 => ProbeProgram { image: include_bytes!("aarch64.bin"), stages: AARCH64 },
    }
}

const X86_64: &[(u8, &str)] = &[
    (b'A', "start of the boot sector"),
    (b'B', "reading the disk through the BIOS"),
    (b'C', "protected mode"),
    (b'D', "64-bit mode with paging"),
    (b'E', "control registers and model-specific registers"),
    (b'F', "an exception and the return from it"),
    (b'G', "changes of page tables, and page faults"),
    (b'H', "atomic instructions such as lock cmpxchg16b"),
    (b'I', "floating point and SSE"),
    (b'J', "the time stamp counter"),
    (b'K', "system calls from ring 3"),
    (b'L', "timer interrupts of the PIT"),
    (b'M', "timer interrupts of the local APIC"),
];

const AARCH64: &[(u8, &str)] = &[
    (b'A', "start of the kernel image"),
    (b'B', "exception vectors, and the return from an exception"),
    (b'C', "the memory management unit"),
    (b'D', "changes of page tables, and page faults"),
    (b'E', "atomic instructions"),
    (b'F', "floating point and SIMD"),
    (b'G', "the generic counter"),
    (b'H', "system calls from exception level 0"),
    (b'I', "timer interrupts of the generic timer"),
];

/// Result of a run of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeGuestReport {
    /// Time of one round of the work. The median, because a busy host makes single rounds longer, and the next one
    /// shorter if its first mark was read late. `None` if no round ended.
    pub round: Option<Duration>,
}

/// Why a run failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeGuestFailure {
    pub cause: String,
    pub kind: ProbeGuestFailureKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProbeGuestFailureKind {
    /// An error.
    Broken,
    /// It timed out after some stages.
    Slow,
    /// It timed out before the first stage.
    Silent,
}

/// How far a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Until every stage has passed.
    Stages,
    /// Including the work.
    Work,
}

/// Parses the guest's output, piece by piece.
struct Transcript {
    stages: &'static [(u8, &'static str)],
    passed: usize,
    wrong: Option<String>,
    /// The text after `?`.
    exception: Option<Vec<u8>>,
    begun: Option<Instant>,
    rounds: Vec<Duration>,
    /// How much of the marker has been read.
    marker: usize,
}

impl Transcript {
    fn new(stages: &'static [(u8, &'static str)]) -> Self {
        Self { stages, passed: 0, wrong: None, exception: None, begun: None, rounds: Vec::new(), marker: 0 }
    }

    fn feed(&mut self, piece: &[u8], at: Instant) {
        for &byte in piece {
            self.take(byte, at);
        }
    }

    /// Output outside of stages is the firmware's and is skipped.
    fn take(&mut self, byte: u8, at: Instant) {
        if self.wrong.is_some() || self.finished() {
            return;
        }
        if let Some(digits) = &mut self.exception {
            digits.push(byte);
            if digits.len() == 2 {
                let vector = String::from_utf8_lossy(digits);
                self.wrong =
                    Some(format!("its test guest was hit by an exception that it did not cause (vector 0x{vector})"));
            }
            return;
        }
        match byte {
            b'!' => self.wrong = Some("its test guest saw a wrong result".to_owned()),
            b'?' => self.exception = Some(Vec::new()),
            _ if self.passed < self.stages.len() => self.passed += usize::from(self.stages[self.passed].0 == byte),
            b'<' => self.begun = Some(at),
            b'>' => self.rounds.extend(self.begun.take().map(|begun| at.duration_since(begun))),
            _ if MARKER[self.marker] == byte => self.marker += 1,
            _ => self.marker = usize::from(MARKER[0] == byte),
        }
    }

    fn finished(&self) -> bool {
        self.marker == MARKER.len()
    }

    fn has(&self, extent: Extent) -> bool {
        match extent {
            Extent::Stages => self.passed == self.stages.len(),
            Extent::Work => self.finished(),
        }
    }

    fn report(&self) -> ProbeGuestReport {
        let mut rounds = self.rounds.clone();
        rounds.sort_unstable();
        ProbeGuestReport { round: rounds.get(rounds.len() / 2).copied() }
    }

    /// The stage at which the guest stopped.
    fn place(&self) -> String {
        match self.stages.get(self.passed) {
            Some((letter, what)) => format!("at stage {} ({what})", char::from(*letter)),
            None => "in the work after the last stage".to_owned(),
        }
    }
}

/// Starts the guest and follows it as far as `extent`.
pub async fn run(
    program: &Path,
    machine: MachineSpec,
    scratch: &Path,
    extent: Extent,
    limit: Duration,
) -> Result<ProbeGuestReport, ProbeGuestFailure> {
    let broken = |cause: String| ProbeGuestFailure { cause, kind: ProbeGuestFailureKind::Broken };
    let guest = self::program(machine.arch);
    let image = match machine.arch {
        Arch::X86_64 => boot_disk(guest.image),
        Arch::Aarch64 => guest.image.to_vec(),
    };
    let no_room = |error| broken(format!("no room for the test guest's image: {error}"));
    let dir = ProbeDir::make(scratch).map_err(no_room)?;
    let file = dir.path().join("guest.img");
    std::fs::write(&file, image).map_err(no_room)?;
    let file = file.to_str().ok_or_else(|| broken("the data directory's path is not valid UTF-8".to_owned()))?;

    let command = Command::new(program, limit)
        .args(args::machine(machine, 1, MEMORY_MIB))
        .args(["-name", PROBE_NAME, "-serial", "stdio"]);
    let command = match machine.arch {
        Arch::X86_64 => command
            .args(["-drive", &format!("if=none,id=d,format=raw,readonly=on,file={}", file.replace(',', ",,"))])
            .args(["-device", "virtio-blk-pci,drive=d", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]),
        Arch::Aarch64 => command.args(["-kernel", file]),
    };

    let mut transcript = Transcript::new(guest.stages);
    let mut stderr = String::new();
    let ran = command
        .run_watched(|stream, piece| {
            match stream {
                Stream::Stdout => transcript.feed(piece, clock::monotonic()),
                Stream::Stderr if stderr.len() < STDERR => stderr.push_str(&String::from_utf8_lossy(piece)),
                Stream::Stderr => {}
            }
            let enough = transcript.wrong.is_some() || transcript.has(extent) || is_stopped(&stderr);
            if enough { OutputWatch::Stop } else { OutputWatch::Continue }
        })
        .await;

    if transcript.wrong.is_none() && transcript.has(extent) {
        return Ok(transcript.report());
    }
    let place = transcript.place();
    let words = own_words(&stderr);
    let out_of_time = match &ran {
        Ok(_) => false,
        Err(CommandError::Deadline { .. }) => true,
        Err(error) => return Err(broken(error.to_string())),
    };
    let kind = match transcript.passed {
        _ if !out_of_time || words.is_some() || transcript.wrong.is_some() => ProbeGuestFailureKind::Broken,
        0 => ProbeGuestFailureKind::Silent,
        _ => ProbeGuestFailureKind::Slow,
    };
    if kind == ProbeGuestFailureKind::Slow && transcript.has(Extent::Stages) {
        // It runs, and its work is not done: the caller decides how long that may take.
        return Ok(transcript.report());
    }
    let mut cause = match &transcript.wrong {
        Some(wrong) => format!("{wrong}, {place}"),
        None if is_stopped(&stderr) => format!("its test guest was stopped {place}"),
        None if out_of_time => format!("its test guest did not finish within {} s and was {place}", limit.as_secs()),
        None if transcript.passed == 0 => "QEMU ended before its test guest began".to_owned(),
        None => format!("QEMU ended while its test guest was {place}"),
    };
    if let Some(words) = words {
        cause.push_str(&format!("; QEMU wrote \"{words}\""));
    }
    Err(ProbeGuestFailure { cause, kind })
}

/// Whether QEMU reports that the hypervisor stopped the guest. QEMU then stays alive with a stopped guest.
fn is_stopped(stderr: &str) -> bool {
    ["KVM internal error", "kvm run failed", "KVM: entry failed", "KVM: unknown exit"]
        .iter()
        .any(|words| stderr.split_once(words).is_some_and(|(_, rest)| rest.contains('\n')))
}

/// The first line of QEMU's standard error that is not a warning, without the program's name.
fn own_words(stderr: &str) -> Option<String> {
    let lines = || stderr.lines().map(str::trim).filter(|line| !line.is_empty());
    let line = lines().find(|line| !line.contains("warning:")).or_else(|| lines().next())?;
    let line = match line.split_once(": ") {
        Some((program, rest)) if program.starts_with("qemu-system-") => rest,
        _ => line,
    };
    let printable = line.chars().map(|c| if c.is_control() { ' ' } else { c });
    Some(printable.take(WORDS).collect())
}

/// A disk that the BIOS boots. The BIOS reads whole tracks, so a few sectors would be too short.
pub fn boot_disk(code: &[u8]) -> Vec<u8> {
    let mut disk = vec![0; 1 << 20];
    disk[..code.len()].copy_from_slice(code);
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    disk
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fed(pieces: &[(&str, u64)]) -> Transcript {
        let mut transcript = Transcript::new(X86_64);
        let began = Instant::now();
        for (piece, at) in pieces {
            transcript.feed(piece.as_bytes(), began + Duration::from_millis(*at));
        }
        transcript
    }

    #[test]
    fn a_whole_transcript_has_the_median_round() {
        // The second mark is read late, as on a busy host: that round seems long, and the next one short.
        let whole =
            fed(&[("SeaBIOS\r\nABCDEFGHIJKLM<", 0), ("><", 10), ("><", 28), ("><", 30), ("><", 40), (">MAYFLY\n", 50)]);
        assert!(whole.has(Extent::Stages) && whole.has(Extent::Work));
        assert_eq!(whole.report().round, Some(Duration::from_millis(10)));
    }

    #[test]
    fn a_transcript_that_stops_names_the_stage() {
        let hung = fed(&[("AB", 0), ("CDEFG", 5)]);
        assert!(!hung.has(Extent::Stages));
        assert_eq!(hung.place(), "at stage H (atomic instructions such as lock cmpxchg16b)");
        let wrong = fed(&[("ABCDE!", 0)]);
        assert_eq!(wrong.wrong.as_deref(), Some("its test guest saw a wrong result"));
        let exception = fed(&[("ABCDE?0d", 0)]);
        assert!(exception.wrong.unwrap().contains("vector 0x0d"));
        assert!(!fed(&[("ABCDEFGHIJKLM<>MAYFL", 0)]).has(Extent::Work));
        // Letters out of order prove nothing.
        assert!(!fed(&[("MLKJIHGFEDCBA MAYFLY", 0)]).has(Extent::Stages));
    }

    #[test]
    fn words_of_qemu_are_one_bounded_line() {
        assert_eq!(own_words(""), None);
        let warned =
            "qemu-system-x86_64: warning: old\nqemu-system-x86_64: error: failed to set MSR 0x10a to 0x69\nmore";
        assert_eq!(own_words(warned).as_deref(), Some("error: failed to set MSR 0x10a to 0x69"));
        assert_eq!(own_words(&"x\t".repeat(900)).unwrap().len(), WORDS);
        assert!(is_stopped("KVM internal error. Suberror: 1\nextra data"));
        assert!(!is_stopped("KVM internal error. Sub"), "the rest of the line is still to come");
    }
}
