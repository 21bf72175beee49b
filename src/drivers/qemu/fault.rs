//! Classifies failures by the output of QEMU. Its exit status is always 1.

use super::qmp::QmpError;
use crate::{
    domain::Code,
    drivers::{
        DriverError, ErrorKind,
        qemu_words::{BUSY, HOST, TEMPLATE, has, shown},
    },
};

/// No machine type supports this number of processors.
const SHAPE: &[&str] = &["invalid smp cpus", "invalid cpu count"];

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

pub fn qmp(error: QmpError, what: &str) -> DriverError {
    DriverError::new(ErrorKind::Retry, Code::BootFailed, format!("{what}: {error}")).source(error)
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
}
