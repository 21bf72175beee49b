//! Classifies failures of Cloud Hypervisor by its messages. Neither its exit code nor the status of an answer says more.

use super::api::VmmApiError;
use crate::{
    domain::Code,
    drivers::{DriverError, ErrorKind},
};

/// Limit of unclassified output in the vm's record.
const SHOWN: usize = 300;

/// The host cannot run it now, for a reason outside the vm.
const HOST: &[&str] = &[
    "failed to open hypervisor interface",
    "cannot allocate memory",
    "out of memory",
    "no space left on device",
    "too many open files",
    "cannot open /dev/kvm",
    "/dev/net/tun",
    "unshare failed",
    "setpriv: ",
];

/// These files will never boot.
const TEMPLATE: &[&str] = &[
    "kernel lacks pvh header",
    "cannot load the kernel",
    "cannot load the bzimage",
    "cannot open kernel file",
    "cannot open initramfs file",
    "cannot load the initramfs",
    "error loading kernel",
    "firmware",
    "maximum disk nesting depth exceeded",
    "backing file support is disabled",
    "failed to parse qcow",
    "invalid magic",
    "unsupported qcow2",
];

/// Another process uses it temporarily.
const BUSY: &[&str] = &["already locked", "likely holds a lock", "another process holds", "resource temporarily"];

/// What a hypervisor that has lost its virtual processors writes to its log.
pub const PROCESSOR_FAILED: &str = "VCPU generated error";

fn has(text: &str, needles: &[&str]) -> bool {
    let text = text.to_ascii_lowercase();
    needles.iter().any(|needle| text.contains(needle))
}

/// It ended instead of serving its API.
pub fn start(log: &str) -> DriverError {
    classified(&shown(log), log, "Cloud Hypervisor did not start")
}

/// It refused a request, or did not answer.
pub fn api(error: VmmApiError, log: &str) -> DriverError {
    match &error {
        VmmApiError::Refused { .. } => classified(&error.to_string(), log, "Cloud Hypervisor cannot boot this guest"),
        VmmApiError::NoAnswer(_) | VmmApiError::NotUnderstood { .. } => {
            DriverError::new(ErrorKind::Retry, Code::BootFailed, error.to_string()).tail(log)
        }
    }
    .source(error)
}

/// Whether another process of the same instance was in the way.
pub fn is_busy(error: &DriverError) -> bool {
    error.kind == ErrorKind::Retry && error.tail.as_deref().is_some_and(|tail| has(tail, BUSY))
}

fn classified(said: &str, log: &str, otherwise: &str) -> DriverError {
    let (kind, code, what) = if has(said, HOST) {
        (ErrorKind::Host, Code::HostRefused, "Cloud Hypervisor cannot run a guest on this host now")
    } else if has(said, BUSY) {
        (ErrorKind::Retry, Code::BootFailed, "something of this instance is in use")
    } else if has(said, TEMPLATE) {
        (ErrorKind::Permanent, Code::TemplateInvalid, "Cloud Hypervisor cannot boot this template")
    } else {
        (ErrorKind::Retry, Code::BootFailed, otherwise)
    };
    DriverError::new(kind, code, format!("{what}: {said}")).tail(log)
}

/// The end of a log as one line, cut to a limit: the chain of errors, without its introduction.
pub fn shown(log: &str) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let introduction =
        lines.iter().rposition(|line| line.starts_with("Error: Cloud Hypervisor exited with the following"));
    let from = introduction.map_or(lines.len().saturating_sub(3), |at| at + 1);
    let chain = lines[from.min(lines.len())..].join("; ");
    let text = if chain.is_empty() { "it gave no reason".to_owned() } else { chain };
    match text.char_indices().nth(SHOWN) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_KVM: &str = "Error: Cloud Hypervisor exited with the following chain of errors:\n  0: Failed to open hypervisor \
                          interface (is hypervisor interface available?)\n  1: Failed to create the Hypervisor\n";

    fn refused(messages: &[&str]) -> DriverError {
        let messages = messages.iter().map(|text| (*text).to_owned()).collect();
        api(VmmApiError::Refused { request: "vm.boot".to_owned(), status: 500, messages }, "log")
    }

    #[test]
    fn failures_are_sorted_by_whose_fault_they_are() {
        let error = start(NO_KVM);
        assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused));
        assert!(error.summary.contains("0: Failed to open hypervisor interface"), "{error}");
        assert!(!error.summary.contains("Error: Cloud") && !error.summary.contains('\n'), "{error}");
        let error = refused(&["Error from API", "The VM could not boot", "Kernel lacks PVH header"]);
        assert_eq!((error.kind, error.code), (ErrorKind::Permanent, Code::TemplateInvalid));
        let error = refused(&["Error from API", "The VM could not boot", "The file is already locked"]);
        assert_eq!(error.kind, ErrorKind::Retry);
        let error = refused(&["Error from API", "something new"]);
        assert_eq!((error.kind, error.code), (ErrorKind::Retry, Code::BootFailed));
        assert!(
            error.summary.contains("the hypervisor refused vm.boot (500): Error from API: something new"),
            "{error}"
        );
        assert_eq!(start("").summary, "Cloud Hypervisor did not start: it gave no reason");
        assert!(start(&"ä".repeat(900)).summary.ends_with('…'));
    }
}
