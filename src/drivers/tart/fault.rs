//! Classifies failures by Tart's output. Its exit status says little: 1 is any error, and 0 may be a crash.

use std::process::ExitStatus;

use super::words::LIMIT;
use crate::{
    domain::{Code, capacity::MACOS_GUESTS_PER_HOST},
    drivers::{DriverError, ErrorKind},
};

/// Limit of output in the vm's record.
const SHOWN: usize = 200;

/// The login keychain is locked or missing. Since macOS 15 a macOS guest needs it to start.
const KEYCHAIN: &[&str] = &[
    "The virtual machine failed to start.",
    "VZErrorDomain Code=-9 ",
    "encountered a security error",
    "Interaction is not allowed",
    "SecKeyCreateRandomKey_ios failed",
];

const KEYCHAIN_REMEDY: &str = "the login keychain of the user that runs Mayfly is probably locked or missing; log that user in at the \
     screen, or `security unlock-keychain`";

/// The host cannot run it now, for a reason outside the vm.
const HOST: &[&str] = &[
    "TART_HOME is invalid: ",
    "VZErrorDomain Code=8 ",
    "No space left on device",
    "Too many open files",
    "Softnet failed: ",
    "Softnet process terminated prematurely",
    "root privileges are required to run",
    "no bridge interfaces matched",
    "Nested virtualization is ",
    "mayfly detach: ",
];

/// These files will never boot here.
const TEMPLATE: &[&str] = &[
    "seems to be already in use, unmount it first",
    "VM is missing some of its files",
    "VM is missing files for a supported layout",
    "\" does not exist",
    "UnsupportedArchitectureError",
    "host macOS version is outdated to run this virtual machine",
    "is not supported on this system.",
    "LessThanMinimalResourcesError",
    "failed to open block device ",
    "VZErrorDomain Code=2 \"Invalid",
    "VZErrorDomain Code=5 ",
];

/// Another process uses it temporarily.
const BUSY: &[&str] = &["Failed to lock auxiliary storage"];

/// Tart's message about a second run of the same VM.
const ALREADY_RUNNING: &str = "is already running!";
const USAGE: i32 = 64;

/// Why a `tart run` ended before its guest ran.
#[derive(Debug)]
pub enum StartFailure {
    /// Another `tart run` runs this VM.
    AlreadyRunning,
    Failed(DriverError),
}

fn has(text: &str, needles: &[&str]) -> bool {
    needles.iter().any(|needle| text.contains(needle))
}

/// `status`: if it is known. `ours`: whether a VM of that name belongs to this Mayfly.
pub fn start(status: Option<ExitStatus>, out: &str, err: &str, ours: impl Fn(&str) -> bool) -> StartFailure {
    if err.contains(ALREADY_RUNNING) {
        return StartFailure::AlreadyRunning;
    }
    if let Some(fault) = host(err, ours) {
        return StartFailure::Failed(fault);
    }
    let (kind, slug, what) = if has(err, BUSY) {
        (ErrorKind::Retry, Code::BootFailed, "something of this VM is in use")
    } else if has(err, TEMPLATE) {
        (ErrorKind::Permanent, Code::TemplateInvalid, "Tart cannot boot this template")
    } else if status.and_then(|s| s.code()) == Some(USAGE) {
        // The arguments come from the settings, so every vm would fail in the same way.
        (ErrorKind::Host, Code::HostUnavailable, "the installed Tart does not take its arguments")
    } else {
        (ErrorKind::Retry, Code::BootFailed, "Tart did not start the guest")
    };
    let said = if err.trim().is_empty() { out } else { err };
    let how = status.map_or_else(|| "its exit status is not known".to_owned(), |status| status.to_string());
    StartFailure::Failed(
        DriverError::new(kind, slug, format!("{what} ({how}): {}", shown(said.trim().as_bytes()))).tail(err),
    )
}

/// The fault of the host that kept the guest from running, if this text shows one. Tart may print it after it took
/// the VM's lock.
pub fn never_ran(err: &str, ours: impl Fn(&str) -> bool) -> Option<DriverError> {
    if let Some(at) = err.find(LIMIT).or_else(|| err.find("VZErrorDomain Code=6 ")) {
        let line = err[at..].lines().next().unwrap_or_default();
        return Some(DriverError::new(ErrorKind::Host, Code::HostLimit, limit(line, ours)).tail(err));
    }
    let said = shown(err.trim().as_bytes());
    if has(err, KEYCHAIN) {
        let summary = format!("Tart could not start the guest, and {KEYCHAIN_REMEDY}: {said}");
        return Some(DriverError::new(ErrorKind::Host, Code::HostRefused, summary).tail(err));
    }
    None
}

/// Any fault of the host in this text. Unlike `never_ran`, it may have affected a running guest.
pub fn host(err: &str, ours: impl Fn(&str) -> bool) -> Option<DriverError> {
    if let Some(fault) = never_ran(err, ours) {
        return Some(fault);
    }
    let said = shown(err.trim().as_bytes());
    if err.contains("root privileges are required to run") {
        let summary = format!(
            "softnet needs to be set up once: `sudo chown root $(which softnet) && sudo chmod u+s $(which softnet)`: {said}"
        );
        return Some(DriverError::new(ErrorKind::Host, Code::HostRefused, summary).tail(err));
    }
    has(err, HOST).then(|| {
        let summary = format!("Tart cannot run a guest on this host now: {said}");
        DriverError::new(ErrorKind::Host, Code::HostRefused, summary).tail(err)
    })
}

/// Message for a host whose kernel refuses one more macOS guest. Tart names the other VMs that it sees running; slots
/// may also be held by other programs or users, or be leaked.
fn limit(line: &str, ours: impl Fn(&str) -> bool) -> String {
    let names: Vec<&str> = match line.split_once("(other running VMs: ").and_then(|(_, rest)| rest.split_once(')')) {
        Some((names, _)) => names.split(',').map(str::trim).filter(|n| !n.is_empty()).collect(),
        None => Vec::new(),
    };
    let reached = "the host runs as many macOS guests as its kernel allows";
    let (mine, others): (Vec<&str>, Vec<&str>) = names.into_iter().partition(|name| ours(name));
    if !others.is_empty() {
        return format!("{reached}: other VMs run beside Mayfly's ({})", others.join(", "));
    }
    if mine.len() >= MACOS_GUESTS_PER_HOST as usize {
        return format!("{reached}: {} of them are Mayfly's", mine.len());
    }
    format!(
        "{reached}, and {} of them to be seen: the slot of a guest that has ended leaked, or another program or user has it; \
         if this lasts, restart the host",
        if mine.is_empty() { "there is none".to_owned() } else { format!("there is only {}", mine.len()) }
    )
}

/// The beginning of a text, quoted and on one line.
pub fn shown(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "nothing".to_owned();
    }
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]);
    format!("{text:?}{}", if bytes.len() > SHOWN { "…" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitStatus {
        std::os::unix::process::ExitStatusExt::from_raw(code << 8)
    }

    fn failed(code: i32, err: &str) -> DriverError {
        match start(Some(exit(code)), "", err, |name| name.starts_with("mayfly-")) {
            StartFailure::Failed(error) => error,
            StartFailure::AlreadyRunning => panic!("{err}"),
        }
    }

    #[test]
    fn the_limit_names_the_vms_that_hold_the_slots() {
        let text = |names: &str| format!("The number of VMs exceeds the system limit{names}\n");
        for (names, says) in [
            ("", "and there is none of them to be seen"),
            (" (other running VMs: mayfly-1)", "and there is only 1 of them to be seen"),
            (" (other running VMs: mayfly-1, mayfly-2)", "2 of them are Mayfly's"),
            (" (other running VMs: mayfly-1, my build)", "other VMs run beside Mayfly's (my build)"),
            (" (other running VMs: a, b)", "other VMs run beside Mayfly's (a, b)"),
        ] {
            let error = failed(1, &text(names));
            assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostLimit));
            assert!(error.summary.contains(says), "{error}");
        }
        let raw = "Error Domain=VZErrorDomain Code=6 \"The maximum supported number of active virtual machines has been reached.\"";
        assert_eq!(failed(1, raw).code, Code::HostLimit);
    }

    #[test]
    fn a_locked_keychain_is_the_hosts_fault_and_has_a_remedy() {
        for text in [
            "Error Domain=VZErrorDomain Code=1 \"The virtual machine failed to start.\" UserInfo={}",
            "Error Domain=VZErrorDomain Code=-9 \"The virtual machine encountered a security error.\"",
            "Interaction is not allowed with the Security Server",
        ] {
            let error = failed(1, text);
            assert_eq!((error.kind, error.code), (ErrorKind::Host, Code::HostRefused), "{text}");
            assert!(error.summary.contains("unlock-keychain"), "{error}");
        }
        let other = failed(1, "Error Domain=VZErrorDomain Code=12 \"restore\"");
        assert_eq!(other.kind, ErrorKind::Retry, "code 12 is not code 1");
    }

    #[test]
    fn texts_are_sorted_by_whose_fault_it_is() {
        let cases: [(i32, &str, ErrorKind, Code); 14] = [
            (
                1,
                "disk /x/disk.img seems to be already in use, unmount it first in Finder",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            (1, "Error: the specified VM \"mayfly-1\" does not exist", ErrorKind::Permanent, Code::TemplateInvalid),
            (
                1,
                "Error: VM is missing some of its files (config.json, disk.img or nvram.bin)",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            (1, "Error: VM is missing files for a supported layout: x", ErrorKind::Permanent, Code::TemplateInvalid),
            (1, "Error: UnsupportedArchitectureError()", ErrorKind::Permanent, Code::TemplateInvalid),
            (
                64,
                "Error: Disk format 'asif' is not supported on this system.\nUsage: tart <subcommand>",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            (
                1,
                "error: host macOS version is outdated to run this virtual machine",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            (
                1,
                "Error Domain=VZErrorDomain Code=2 \"Failed to lock auxiliary storage.\"",
                ErrorKind::Retry,
                Code::BootFailed,
            ),
            (64, "Error: Unknown option '--no-clipboard'\nUsage: tart run", ErrorKind::Host, Code::HostUnavailable),
            (
                64,
                "Error: Nested virtualization is available for Mac with the M3 chip, and later.",
                ErrorKind::Host,
                Code::HostRefused,
            ),
            (1, "TART_HOME is invalid: /x does not exist", ErrorKind::Host, Code::HostRefused),
            (127, "mayfly detach: cannot run /x/tart: No such file or directory", ErrorKind::Host, Code::HostRefused),
            (1, "something new", ErrorKind::Retry, Code::BootFailed),
            (1, "", ErrorKind::Retry, Code::BootFailed),
        ];
        for (status, text, kind, code) in cases {
            let error = failed(status, text);
            assert_eq!((error.kind, error.code), (kind, code), "{text}");
            assert!(!error.summary.contains('\n'));
        }
        assert!(
            failed(1, "root privileges are required to run and passwordless sudo was not available")
                .summary
                .contains("chmod u+s")
        );
        assert!(matches!(
            start(Some(exit(2)), "", "VM \"x\" is already running!", |_| true),
            StartFailure::AlreadyRunning
        ));
    }

    #[test]
    fn an_unknown_text_is_shown_cut() {
        let error = failed(1, &"x".repeat(500));
        assert_eq!(error.summary, format!("Tart did not start the guest (exit status: 1): \"{}\"…", "x".repeat(200)));
        let StartFailure::Failed(error) = start(None, "said on stdout\n", "", |_| false) else { panic!() };
        assert_eq!(error.summary, "Tart did not start the guest (its exit status is not known): \"said on stdout\"");
        assert_eq!(failed(1, "").summary, "Tart did not start the guest (exit status: 1): nothing");
        assert_eq!(shown("ä".repeat(150).as_bytes()).chars().filter(|c| *c == 'ä').count(), 100);
    }
}
