//! What QEMU and qemu-img print when they fail, by whose fault it is. Their exit status is always 1.

use super::{DriverError, ErrorKind};
use crate::domain::Code;

/// Limit of unclassified output in the vm's record.
const SHOWN: usize = 200;

/// The host cannot run it now, for a reason outside the vm.
pub const HOST: &[&str] = &[
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
pub const TEMPLATE: &[&str] = &[
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

/// Another process uses it temporarily.
pub const BUSY: &[&str] =
    &["failed to get \"write\" lock", "failed to get shared", "cannot lock pid file", "resource temporarily"];

pub fn has(text: &str, needles: &[&str]) -> bool {
    let text = text.to_ascii_lowercase();
    needles.iter().any(|needle| text.contains(needle))
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

/// The last lines of a text as one line, without the program's name, cut to a limit.
pub fn shown(stderr: &str) -> String {
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
    fn a_full_disk_is_the_hosts_fault() {
        let error = clone("qemu-img: /d/disk.qcow2.tmp: Could not resize file: No space left on device");
        assert_eq!(error.kind, ErrorKind::Host);
        let error = clone(
            "qemu-img: /d/disk.qcow2.tmp: Could not open '/t/disk': Image is not in qcow2 format\nCould not open backing image.",
        );
        assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid));
    }
}
