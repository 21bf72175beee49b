//! The probe of QEMU's accelerators: its guests against their sources and under the real emulator, and its verdicts with a
//! stand-in for QEMU that simulates accelerators which do not work.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use mayfly::{
    domain::Arch,
    drivers::qemu::{
        args::{Accelerator, MachineSpec},
        probe::{
            self,
            device::Refused,
            guest::{self, Extent},
        },
    },
    platform::process::find_program,
};

const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/drivers/qemu/probe");

/// The GNU binutils for this processor, by what stands before their names.
fn binutils(arch: Arch) -> Option<String> {
    let own = Arch::of_this_host() == Some(arch) && cfg!(target_os = "linux");
    let cross = format!("{}-linux-gnu-", arch.as_str());
    [Some(cross), own.then(String::new)].into_iter().flatten().find(|prefix| {
        ["as", "ld", "objcopy"].iter().all(|tool| find_program(Path::new(&format!("{prefix}{tool}"))).is_some())
    })
}

/// What is committed is what the source says.
fn assembles(arch: Arch, assemble: &[&str], link: &[&str]) {
    let Some(prefix) = binutils(arch) else {
        eprintln!("NOT CHECKED: the probe's guest for {} against its source (no binutils for it here)", arch.as_str());
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let source = format!("{DIR}/{}.s", arch.as_str());
    let run = |tool: &str, args: &[&str]| {
        let output = Command::new(format!("{prefix}{tool}")).args(args).output().unwrap();
        assert!(output.status.success(), "{tool}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run("as", &[assemble, &["-o", &at("guest.o"), &source]].concat());
    run("ld", &[link, &["-o", &at("guest.elf"), &at("guest.o")]].concat());
    run("objcopy", &["-O", "binary", "-j", ".text", &at("guest.elf"), &at("guest.bin")]);
    let assembled = std::fs::read(at("guest.bin")).unwrap();
    assert!(assembled == guest::program(arch).image, "assemble {source} again, as its first lines say");
}

#[test]
fn the_guest_for_x86_64_is_what_its_source_says() {
    assembles(Arch::X86_64, &["--64"], &["-m", "elf_x86_64", "-Ttext", "0x7c00"]);
}

#[test]
fn the_guest_for_aarch64_is_what_its_source_says() {
    assembles(Arch::Aarch64, &["-march=armv8.1-a"], &["-Ttext", "0x40080000"]);
}

fn qemu(arch: Arch) -> Option<PathBuf> {
    find_program(Path::new(&format!("qemu-system-{}", arch.as_str())))
}

fn own() -> (Arch, PathBuf) {
    let arch = Arch::of_this_host().expect("a processor that Mayfly knows");
    (arch, qemu(arch).expect("QEMU is installed"))
}

const PATIENCE: Duration = Duration::from_secs(60);

async fn emulated(program: &Path, arch: Arch) {
    let dir = tempfile::tempdir().unwrap();
    let machine = MachineSpec { arch, accelerator: Accelerator::Tcg, sandbox: false };
    let report = guest::run(program, machine, dir.path(), Extent::Work, PATIENCE).await.unwrap();
    eprintln!("one round of the guest's work takes {:?} under the emulator ({})", report.round, arch.as_str());
    assert!(report.round.is_some_and(|round| round > Duration::ZERO));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
}

#[tokio::test]
async fn every_stage_passes_under_the_emulator() {
    let (arch, program) = own();
    emulated(&program, arch).await;
}

#[tokio::test]
async fn every_stage_of_the_other_processor_passes_under_the_emulator() {
    let other = if own().0 == Arch::X86_64 { Arch::Aarch64 } else { Arch::X86_64 };
    match qemu(other) {
        Some(program) => emulated(&program, other).await,
        None => eprintln!("NOT CHECKED: the probe's guest for {} (no qemu-system-{0} here)", other.as_str()),
    }
}

/// A stand-in for QEMU: `accelerated` is run in place of an accelerated guest; everything else goes to the real emulator.
fn stand_in(dir: &Path, accelerated: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let (_, real) = own();
    let path = dir.join("qemu");
    let script = format!(
        "#!/bin/sh\nreal='{}'\ncase \"$*\" in\n*'-accel kvm'*|*'-accel hvf'*)\n{accelerated}\n;;\nesac\nexec \"$real\" \"$@\"\n",
        real.display()
    );
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    path
}

fn accelerator() -> Accelerator {
    if cfg!(target_os = "macos") { Accelerator::Hvf } else { Accelerator::Kvm }
}

/// The verdict on an accelerator that is offered and behaves like this.
async fn verdict(script: &str) -> (Accelerator, Option<String>, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let program = stand_in(dir.path(), script);
    let machine = MachineSpec { arch: own().0, accelerator: accelerator(), sandbox: false };
    let began = Instant::now();
    let (accelerator, note) = probe::choose(&program, machine, Ok(()), dir.path()).await.unwrap();
    eprintln!("{accelerator:?} after {:?}: {note:?}", began.elapsed());
    (accelerator, note, began.elapsed())
}

async fn is_emulated_because(script: &str, because: &[&str]) {
    let (accelerator, note, took) = verdict(script).await;
    assert_eq!(accelerator, Accelerator::Tcg);
    let note = note.unwrap();
    assert!(note.starts_with("emulation, ten to thirty times slower than hardware, because "), "{note}");
    for words in because {
        assert!(note.contains(words), "{words:?} is not in {note:?}");
    }
    assert!(took < Duration::from_secs(30), "it took {took:?}");
}

/// The first stages' letters, as the guest writes them.
fn letters(count: usize) -> String {
    guest::program(own().0).stages[..count].iter().map(|(letter, _)| char::from(*letter)).collect()
}

#[tokio::test]
async fn an_accelerator_that_hangs_is_not_used_and_its_stage_is_named() {
    let stage = guest::program(own().0).stages[3].1;
    is_emulated_because(&format!("printf {}; exec sleep 600", letters(3)), &["did not finish within 7 s", stage]).await;
}

#[tokio::test]
async fn an_accelerator_that_stops_its_guest_is_not_used_at_once_and_qemu_is_quoted() {
    let script = format!("printf {}; echo 'KVM internal error. Suberror: 1' >&2; exec sleep 600", letters(2));
    let began = Instant::now();
    is_emulated_because(
        &script,
        &["was stopped", "\"KVM internal error. Suberror: 1\"", guest::program(own().0).stages[2].1],
    )
    .await;
    eprintln!("{:?}", began.elapsed());
}

#[tokio::test]
async fn an_accelerator_that_computes_wrongly_is_not_used() {
    is_emulated_because(&format!("printf '{}!'; exec sleep 600", letters(4)), &["wrong result"]).await;
}

#[tokio::test]
async fn a_qemu_that_refuses_the_accelerator_is_quoted() {
    let script = "echo 'qemu-system-x86_64: failed to initialize kvm: Inappropriate ioctl for device' >&2; exit 1";
    is_emulated_because(script, &["\"failed to initialize kvm: Inappropriate ioctl for device\""]).await;
}

#[tokio::test]
async fn an_accelerator_that_is_slower_than_the_emulator_is_not_used() {
    let all = letters(guest::program(own().0).stages.len());
    // A second for what takes the emulator a tenth of it.
    let script =
        format!("printf {all}; for round in 1 2 3; do printf '<'; sleep 1; printf '>'; done; echo MAYFLY; exit 0");
    is_emulated_because(&script, &["the same work took 1", "ms with the emulator"]).await;
}

#[tokio::test]
async fn an_accelerator_that_passes_and_is_clearly_faster_is_used() {
    // All marks of the work at once: faster than any emulator.
    let all = letters(guest::program(own().0).stages.len());
    let (used, note, _) = verdict(&format!("printf '{all}<><><>MAYFLY\\n'; exit 0")).await;
    assert_eq!((used, note), (accelerator(), None));
}

#[tokio::test]
async fn an_accelerator_that_is_not_offered_is_not_tried() {
    let dir = tempfile::tempdir().unwrap();
    let program = stand_in(dir.path(), &format!("touch '{}'; exit 1", dir.path().join("tried").display()));
    let machine = MachineSpec { arch: own().0, accelerator: accelerator(), sandbox: false };
    let refused = Refused { cause: "/dev/kvm does not exist".to_owned(), remedy: "load the module" };
    let (used, note) = probe::choose(&program, machine, Err(refused), dir.path()).await.unwrap();
    assert_eq!(used, Accelerator::Tcg);
    assert_eq!(
        note.as_deref(),
        Some(
            "emulation, ten to thirty times slower than hardware, because /dev/kvm does not exist; for speed, load the module"
        )
    );
    assert!(!dir.path().join("tried").exists());
}
