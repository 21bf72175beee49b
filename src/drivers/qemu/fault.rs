//! Classifies failures by the output of QEMU and qemu-img. Their exit status is always 1.

use super::qmp::QmpError;
use crate::{
    domain::Code,
    drivers::{DriverError, ErrorKind},
};

/// Limit of unclassified output in the vm's record.
const SHOWN: usize = 200;

/// The host cannot run it now, for a reason outside the vm.
const HOST: &[&str] = &[
    "cannot allocate memory",
    "cannot set up guest memory",
    "could not access kvm kernel module",
    "failed to initialize kvm",
    "failed to set msr",
    "invalid accelerator",
    "no accelerator found",
    "no space left on device",
    "disk quota exceeded",
    "too many open files",
    "could not set up host forwarding rule",
    // QEMU's own firmware; a template's firmware would be a path.
    "could not load pc bios 'bios",
    "network backend 'user' is not compiled",
    "parameter 'type' expects a netdev backend type",
];

/// These files will never boot.
const TEMPLATE: &[&str] = &[
    "image is not in",
    "could not open backing",
    "could not open kernel file",
    "could not load kernel",
    "error loading uncompressed kernel",
    "linux kernel too old",
    "invalid kernel",
    "could not load initrd",
    "error reading initrd",
    "unsupported qcow2",
    "does the image contain",
    "could not find rom image",
    "could not load pc bios",
];

/// No machine type supports this number of processors.
const SHAPE: &[&str] = &["invalid smp cpus", "invalid cpu count"];

/// Another process uses it temporarily.
const BUSY: &[&str] =
    &["failed to get \"write\" lock", "failed to get shared", "cannot lock pid file", "resource temporarily"];

fn has(text: &str, needles: &[&str]) -> bool {
    let text = text.to_ascii_lowercase();
    needles.iter().any(|needle| text.contains(needle))
}

/// QEMU refused to start.
pub fn start(stderr: &str) -> DriverError {
    let said = shown(stderr);
    let (kind, code, what) = if has(stderr, HOST) {
        (ErrorKind::Host, Code::HostRefused, "QEMU cannot run a guest on this host now")
    } else if has(stderr, SHAPE) {
        (ErrorKind::Permanent, Code::SizeImpossible, "QEMU has no machine of this size")
    } else if has(stderr, BUSY) {
        (ErrorKind::Retry, Code::BootFailed, "something of this instance is in use")
    } else if has(stderr, TEMPLATE) {
        (ErrorKind::Permanent, Code::TemplateInvalid, "QEMU cannot boot this template")
    } else {
        (ErrorKind::Retry, Code::BootFailed, "QEMU did not start")
    };
    DriverError::new(kind, code, format!("{what}: {said}")).tail(stderr)
}

/// Whether a QEMU that ended without a recorded cause reported its accelerator as the cause.
pub fn is_accelerators(said: &str) -> bool {
    has(said, &["kvm", "hvf", "hv_"])
}

/// Whether another process of the same instance holds what this QEMU needs.
pub fn is_busy(error: &DriverError) -> bool {
    error.kind == ErrorKind::Retry && error.tail.as_deref().is_some_and(|tail| has(tail, BUSY))
}

/// qemu-img refused to clone or to read an image.
pub fn clone(stderr: &str) -> DriverError {
    let said = shown(stderr);
    let (kind, code, what) = if has(stderr, HOST) {
        (ErrorKind::Host, Code::CloneFailed, "this host has no room for a clone")
    } else if has(stderr, BUSY) {
        (ErrorKind::Retry, Code::CloneFailed, "the image is in use")
    } else if has(stderr, TEMPLATE) {
        (ErrorKind::Permanent, Code::TemplateInvalid, "the template's disk is not what it is said to be")
    } else {
        (ErrorKind::Retry, Code::CloneFailed, "the template's disk could not be cloned")
    };
    DriverError::new(kind, code, format!("{what}: {said}")).tail(stderr)
}

pub fn qmp(error: QmpError, what: &str) -> DriverError {
    DriverError::new(ErrorKind::Retry, Code::BootFailed, format!("{what}: {error}")).source(error)
}

/// The last lines of a text as one line, without the program's name, cut to a limit.
fn shown(stderr: &str) -> String {
    let lines: Vec<&str> = stderr
        .lines()
        .map(|line| line.trim().trim_start_matches("qemu-img: "))
        .map(|line| match line.split_once(": ") {
            Some((program, rest)) if program.starts_with("qemu") && !program.contains(' ') => rest,
            _ => line,
        })
        .filter(|line| !line.is_empty() && !line.contains("warning: "))
        .collect();
    let text = if lines.is_empty() { "it gave no reason".to_owned() } else { lines.join("; ") };
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_sorted_by_whose_fault_it_is() {
        for (text, kind, code) in [
            (
                "qemu-system-x86_64: cannot set up guest memory 'pc.ram': Cannot allocate memory",
                ErrorKind::Host,
                Code::HostRefused,
            ),
            (
                "Could not access KVM kernel module: Permission denied\nqemu-system-x86_64: failed to initialize kvm: Permission denied",
                ErrorKind::Host,
                Code::HostRefused,
            ),
            (
                "qemu-system-x86_64: cannot create PID file: Cannot lock pid file: Resource temporarily unavailable",
                ErrorKind::Retry,
                Code::BootFailed,
            ),
            (
                "qemu-system-x86_64: -drive if=none,id=disk: Image is not in qcow2 format",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            (
                "qemu: could not open kernel file '/t/vmlinuz': No such file or directory",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            ("qemu: could not load PC BIOS '/t/firmware'", ErrorKind::Permanent, Code::TemplateInvalid),
            ("qemu: could not load PC BIOS 'bios-256k.bin'", ErrorKind::Host, Code::HostRefused),
            (
                "qemu-system-x86_64: Invalid SMP CPUs 500. The max CPUs supported by machine 'pc-q35-7.2' is 288",
                ErrorKind::Permanent,
                Code::SizeImpossible,
            ),
            ("qemu-system-x86_64: something new", ErrorKind::Retry, Code::BootFailed),
            ("", ErrorKind::Retry, Code::BootFailed),
        ] {
            let error = start(text);
            assert_eq!((error.kind, error.code), (kind, code), "{text}");
            assert!(!error.summary.contains('\n'));
        }
    }

    #[test]
    fn an_unknown_text_is_shown_cut() {
        let error = start(&format!("qemu-system-x86_64: {}", "ä".repeat(500)));
        assert_eq!(error.summary, format!("QEMU did not start: {}…", "ä".repeat(200)));
        assert_eq!(start("").summary, "QEMU did not start: it gave no reason");
    }

    #[test]
    fn a_full_disk_is_the_hosts_fault() {
        let error = clone("qemu-img: /d/disk.qcow2.tmp: Could not resize file: No space left on device");
        assert_eq!(error.kind, ErrorKind::Host);
        let error = clone(
            "qemu-img: /d/disk.qcow2.tmp: Could not open '/t/disk': Image is not in qcow2 format\nCould not open backing image.",
        );
        assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid));
    }
}
