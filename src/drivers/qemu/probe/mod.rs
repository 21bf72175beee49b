//! Finds out which accelerator runs guests here.
//!
//! An accelerator whose device opens may still hang its guests, abort, or be slower than the emulator. So the proof
//! is a guest that does what kernels do while they boot (`guest`), and a fixed amount of work that is timed against
//! the emulator. The result is cached until something changes on which it may depend.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use self::{
    device::Refused,
    guest::{Extent, ProbeGuestFailureKind},
};
use super::args::{Accelerator, MachineSpec};
use crate::{
    domain::Arch,
    platform::{clock, files},
};

pub use self::guest::{PROBE_NAME, boot_disk};

pub mod device;
pub mod guest;

/// Time limit of each run of the guest. With hardware acceleration, a run takes less than a second; both limits
/// together bound the probe.
const ACCELERATED: Duration = Duration::from_secs(7);
const EMULATED: Duration = Duration::from_secs(8);
/// Time limit for a guest whose firmware has not started, when there is no other accelerator to fall back to.
const PATIENT: Duration = Duration::from_secs(60);
/// An accelerator is used if the emulator needs at least this many times as long for the same work. Native execution
/// takes about a tenth of the emulator's time, and an interpreter in the kernel takes longer than the emulator, which
/// compiles. The limit is between them, with tolerance for a busy host, which may double or triple a time.
const RATIO: u32 = 2;
/// A busy host may have disturbed a comparison. One that counts against the accelerator and took less time than this
/// is repeated.
const AGAIN: Duration = Duration::from_secs(2);
/// Increased when the same guest would be judged differently.
const JUDGEMENT: u32 = 2;

/// The result of a probe, and what it depends on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered {
    pub basis: ProbeInputs,
    pub accelerator: Accelerator,
    pub note: Option<String>,
}

/// All inputs on which an accelerator may depend. A change of any of them requires a new probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeInputs {
    /// The version of the probe. Files of older versions lack it and are ignored.
    #[serde(default)]
    pub probe: String,
    pub program: PathBuf,
    pub version: String,
    pub arch: String,
    pub kernel: String,
    pub boot_id: Option<String>,
    pub device: Option<String>,
}

impl ProbeInputs {
    pub fn now(program: &Path, version: &str, arch: Arch) -> Self {
        let uname = rustix::system::uname();
        let (release, build) = (uname.release().to_string_lossy(), uname.version().to_string_lossy());
        Self {
            probe: probe_version(arch),
            program: program.to_owned(),
            version: version.to_owned(),
            arch: arch.as_str().to_owned(),
            kernel: format!("{release} {build}"),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|id| id.trim().to_owned()),
            device: device::state(Path::new(device::KVM)),
        }
    }
}

impl Remembered {
    /// Whether this program's version of the probe gave the result.
    pub fn is_of_this_probe(&self) -> bool {
        [Arch::X86_64, Arch::Aarch64]
            .iter()
            .any(|arch| arch.as_str() == self.basis.arch && probe_version(*arch) == self.basis.probe)
    }
}

/// Derived from the guest's program, so that a change of it is never forgotten.
pub fn probe_version(arch: Arch) -> String {
    let digest = Sha256::digest(guest::program(arch).image);
    let digest: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("{JUDGEMENT}-{digest}")
}

/// Separates the causes from the remedy in a note.
pub const FOR_SPEED: &str = "; for speed, ";

/// Text about emulated guests, for `GET /host`, the log and `doctor`: it follows the accelerator's name.
pub fn note(cause: &str, remedy: &str) -> String {
    format!("emulation, ten to thirty times slower than hardware, because {cause}{FOR_SPEED}{remedy}")
}

/// The remedy for an accelerator that is present and does not work.
const OTHER_HOST: &str = "use a host whose processor offers virtualisation (vmx or svm in /proc/cpuinfo), with nested \
                          virtualisation where the host is itself a virtual machine";

/// The best accelerator that really runs a guest, and why a better one is not used. `Err` if none does.
pub async fn find(
    program: &Path,
    arch: Arch,
    sandbox: bool,
    scratch: &Path,
) -> Result<(Accelerator, Option<String>), String> {
    let better = if cfg!(target_os = "macos") { Accelerator::Hvf } else { Accelerator::Kvm };
    let offered = match better {
        _ if Arch::of_this_host() != Some(arch) => Err(Refused {
            cause: format!("{} guests are foreign to this host's processor", arch.as_str()),
            remedy: "run them on a host with such a processor",
        }),
        Accelerator::Kvm => device::open(Path::new(device::KVM)),
        Accelerator::Hvf | Accelerator::Tcg => Ok(()),
    };
    choose(program, MachineSpec { arch, accelerator: better, sandbox }, offered, scratch).await
}

/// This accelerator if it is available and works, else the emulator.
pub async fn choose(
    program: &Path,
    better: MachineSpec,
    offered: Result<(), Refused>,
    scratch: &Path,
) -> Result<(Accelerator, Option<String>), String> {
    let refused = match offered {
        Ok(()) => match proven(program, better, scratch).await {
            Ok(()) => return Ok((better.accelerator, None)),
            Err(cause) => {
                let software = if device::is_software() { " (the processor offers neither vmx nor svm)" } else { "" };
                let cause = format!("{} does not work here{software}: {cause}", better.accelerator.as_str());
                Refused { cause, remedy: OTHER_HOST }
            }
        },
        Err(refused) => refused,
    };
    emulates(program, better, scratch).await?;
    Ok((Accelerator::Tcg, Some(note(&refused.cause, refused.remedy))))
}

/// Whether a guest passes every stage under this accelerator and does its work clearly faster than under the
/// emulator.
async fn proven(program: &Path, machine: MachineSpec, scratch: &Path) -> Result<(), String> {
    let emulated = MachineSpec { accelerator: Accelerator::Tcg, ..machine };
    let began = clock::monotonic();
    let mut repeated = false;
    loop {
        let report = guest::run(program, machine, scratch, Extent::Work, ACCELERATED).await.map_err(|f| f.cause)?;
        let Some(accelerated) = report.round else {
            return Err(format!("its test guest did no work within {} s", ACCELERATED.as_secs()));
        };
        // A broken emulator says nothing against an accelerator that works, and one that has not finished is slow.
        let emulator = guest::run(program, emulated, scratch, Extent::Work, EMULATED).await.ok();
        let Some(emulator) = emulator.and_then(|report| report.round) else { return Ok(()) };
        tracing::debug!(?accelerated, ?emulator, "measured the test guest with and without acceleration");
        if accelerated * RATIO <= emulator {
            return Ok(());
        }
        if clock::elapsed(began) > AGAIN || repeated {
            return Err(format!(
                "the same work took {} ms with it and {} ms with the emulator",
                accelerated.as_millis(),
                emulator.as_millis()
            ));
        }
        repeated = true;
    }
}

/// Whether the emulator runs guests. A guest that has started when its time is over is proof enough, because the host
/// may be busy. There is nothing else to fall back to, so a guest that has not started gets more time.
async fn emulates(program: &Path, machine: MachineSpec, scratch: &Path) -> Result<(), String> {
    let machine = MachineSpec { accelerator: Accelerator::Tcg, ..machine };
    let mut cause = String::new();
    for limit in [EMULATED, PATIENT] {
        match guest::run(program, machine, scratch, Extent::Stages, limit).await {
            Ok(_) => return Ok(()),
            Err(failure) => match failure.kind {
                ProbeGuestFailureKind::Slow => return Ok(()),
                ProbeGuestFailureKind::Broken => return Err(failure.cause),
                ProbeGuestFailureKind::Silent => cause = failure.cause,
            },
        }
    }
    Err(cause)
}

/// The cached result, if it is still valid.
pub fn recall(file: &Path, basis: &ProbeInputs) -> Option<Remembered> {
    let remembered: Remembered = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    (remembered.basis == *basis).then_some(remembered)
}

/// A missing cache only costs a probe at the next start, so a failure to write it is no error.
pub fn remember(file: &Path, remembered: &Remembered) {
    let written = serde_json::to_vec_pretty(remembered).map_err(std::io::Error::other).and_then(|json| {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        files::replace_unsynced(file, &json)
    });
    if let Err(error) = written {
        tracing::warn!(%error, file = %file.display(), "cannot save the result of the accelerator probe");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_answer_holds_until_its_basis_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("sub/probe.json");
        let basis = ProbeInputs::now(Path::new("/usr/bin/qemu"), "QEMU emulator version 7.2.22", Arch::X86_64);
        assert_eq!(recall(&file, &basis), None);
        let remembered =
            Remembered { basis: basis.clone(), accelerator: Accelerator::Tcg, note: Some("because".to_owned()) };
        remember(&file, &remembered);
        assert_eq!(recall(&file, &basis), Some(remembered));
        assert_eq!(recall(&file, &ProbeInputs { version: "8".to_owned(), ..basis.clone() }), None);
        let other = ProbeInputs { probe: "1".to_owned(), ..basis.clone() };
        assert_eq!(recall(&file, &other), None);
        std::fs::write(&file, "{").unwrap();
        assert_eq!(recall(&file, &basis), None);
    }

    #[test]
    fn an_answer_of_an_older_probe_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("probe.json");
        let basis = ProbeInputs::now(Path::new("/usr/bin/qemu"), "QEMU emulator version 7.2.22", Arch::X86_64);
        let remembered = Remembered { basis: basis.clone(), accelerator: Accelerator::Kvm, note: None };
        assert!(remembered.is_of_this_probe());
        // Written before the probe had a version.
        let mut old = serde_json::to_value(&remembered).unwrap();
        old["basis"].as_object_mut().unwrap().remove("probe");
        std::fs::write(&file, old.to_string()).unwrap();
        assert_eq!(recall(&file, &basis), None);
        assert!(!serde_json::from_value::<Remembered>(old).unwrap().is_of_this_probe());
    }
}
