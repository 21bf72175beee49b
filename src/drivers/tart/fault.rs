//! Classifies failures by Tart's output. Its exit status says little: 1 is any error, and 0 may be a crash.

use std::process::ExitStatus;

use super::words::LIMIT;
use crate::{
    domain::{Code, GuestOs, capacity::MACOS_GUESTS_PER_HOST},
    drivers::{DriverError, ErrorKind, failure::shown},
};

const KEYCHAIN_REMEDY: &str = "the login keychain of the user that runs Mayfly is probably locked or missing; log that user in at the \
     screen, or `security unlock-keychain`";

/// What a message of Tart about a start means, and so whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MessageMeaning {
    /// Another `tart run` runs this VM.
    AlreadyRunning,
    /// The host's: the kernel runs no more macOS guests.
    Limit,
    /// The host's: the login keychain is locked or missing. Since macOS 15 a macOS guest needs it to start.
    Keychain,
    /// The host's: softnet is not set up.
    Softnet,
    /// The host's, for another reason outside the vm.
    Host,
    /// The host's, or this clone's: Tart reads the configurations of all running VMs, and one of them is broken.
    Configurations,
    /// Something of this VM is in use for a moment.
    Busy,
    /// This clone's: another program removed it, or parts of it.
    Clone,
    /// The template's: these files will never boot here.
    Template,
}

/// All known messages: the first one in this order that is found decides. A message that is not here is shown and never
/// guessed at; another attempt follows.
const MESSAGES: &[(&str, MessageMeaning)] = &[
    ("is already running!", MessageMeaning::AlreadyRunning),
    (LIMIT, MessageMeaning::Limit),
    ("VZErrorDomain Code=6 ", MessageMeaning::Limit),
    ("The virtual machine failed to start.", MessageMeaning::Keychain),
    ("VZErrorDomain Code=-9 ", MessageMeaning::Keychain),
    ("encountered a security error", MessageMeaning::Keychain),
    ("Interaction is not allowed", MessageMeaning::Keychain),
    ("SecKeyCreateRandomKey_ios failed", MessageMeaning::Keychain),
    ("root privileges are required to run", MessageMeaning::Softnet),
    ("TART_HOME is invalid: ", MessageMeaning::Host),
    ("VZErrorDomain Code=8 ", MessageMeaning::Host),
    ("No space left on device", MessageMeaning::Host),
    ("Too many open files", MessageMeaning::Host),
    ("Softnet failed: ", MessageMeaning::Host),
    ("Softnet process terminated prematurely", MessageMeaning::Host),
    ("no bridge interfaces matched", MessageMeaning::Host),
    ("Nested virtualization is ", MessageMeaning::Host),
    ("mayfly detach: ", MessageMeaning::Host),
    ("The data couldn’t be read because it ", MessageMeaning::Configurations),
    ("dataCorrupted", MessageMeaning::Configurations),
    ("keyNotFound", MessageMeaning::Configurations),
    ("typeMismatch", MessageMeaning::Configurations),
    ("valueNotFound", MessageMeaning::Configurations),
    ("Failed to lock auxiliary storage", MessageMeaning::Busy),
    ("the specified VM \"", MessageMeaning::Clone),
    ("VM is missing some of its files", MessageMeaning::Clone),
    ("VM is missing files for a supported layout", MessageMeaning::Clone),
    ("seems to be already in use, unmount it first", MessageMeaning::Template),
    ("UnsupportedArchitectureError", MessageMeaning::Template),
    ("host macOS version is outdated to run this virtual machine", MessageMeaning::Template),
    ("is not supported on this system.", MessageMeaning::Template),
    ("LessThanMinimalResourcesError", MessageMeaning::Template),
    ("failed to open block device ", MessageMeaning::Template),
    ("VZErrorDomain Code=2 \"Invalid", MessageMeaning::Template),
    ("VZErrorDomain Code=5 ", MessageMeaning::Template),
];

fn meaning(text: &str) -> Option<MessageMeaning> {
    MESSAGES.iter().find(|(message, _)| text.contains(message)).map(|(_, meaning)| *meaning)
}

/// The exit status of wrong usage.
const USAGE: i32 = 64;

/// What has to be known of the host's VMs to understand a message.
pub trait VmsOfHost {
    /// Whether a VM of that name belongs to this Mayfly.
    fn is_ours(&self, name: &str) -> bool;
    /// `None`: there is no VM of that name, or its configuration cannot be read.
    fn os(&self, name: &str) -> Option<GuestOs>;
    /// The names of the VMs whose configuration cannot be read.
    fn unreadable(&self) -> Vec<String>;
}

/// Why a `tart run` ended before its guest ran.
#[derive(Debug)]
pub enum StartFailure {
    /// Another `tart run` runs this VM.
    AlreadyRunning,
    Failed(DriverError),
}

/// `status`: if it is known.
pub fn start(status: Option<ExitStatus>, out: &str, err: &str, vms: &impl VmsOfHost) -> StartFailure {
    let known = meaning(err);
    if known == Some(MessageMeaning::AlreadyRunning) {
        return StartFailure::AlreadyRunning;
    }
    if let Some(fault) = host(err, vms) {
        return StartFailure::Failed(fault);
    }
    let (kind, slug, what) = match known {
        Some(MessageMeaning::Busy) => (ErrorKind::Retry, Code::BootFailed, "something of this VM is in use"),
        Some(MessageMeaning::Clone) => {
            (ErrorKind::Instance, Code::BootFailed, "another program removed this VM, or files of it")
        }
        Some(MessageMeaning::Configurations) => {
            (ErrorKind::Instance, Code::BootFailed, "Tart cannot read the configuration of a VM")
        }
        Some(MessageMeaning::Template) => {
            (ErrorKind::Permanent, Code::TemplateInvalid, "Tart cannot boot this template")
        }
        // The arguments come from the settings, so every vm would fail in the same way.
        None if status.and_then(|s| s.code()) == Some(USAGE) => {
            (ErrorKind::Host, Code::HostUnavailable, "the installed Tart does not take its arguments")
        }
        None
        | Some(
            MessageMeaning::AlreadyRunning
            | MessageMeaning::Limit
            | MessageMeaning::Keychain
            | MessageMeaning::Softnet
            | MessageMeaning::Host,
        ) => (ErrorKind::Retry, Code::BootFailed, "Tart did not start the guest"),
    };
    let said = if err.trim().is_empty() { out } else { err };
    let how = status.map_or_else(|| "its exit status is not known".to_owned(), |status| status.to_string());
    StartFailure::Failed(
        DriverError::new(kind, slug, format!("{what} ({how}): {}", shown(said.trim().as_bytes()))).tail(err),
    )
}

/// The fault of the host that kept the guest from running, if this text shows one. Tart may print it after it took
/// the VM's lock.
pub fn never_ran(err: &str, vms: &impl VmsOfHost) -> Option<DriverError> {
    match meaning(err)? {
        MessageMeaning::Limit | MessageMeaning::Keychain => host(err, vms),
        MessageMeaning::AlreadyRunning
        | MessageMeaning::Softnet
        | MessageMeaning::Host
        | MessageMeaning::Configurations
        | MessageMeaning::Busy
        | MessageMeaning::Clone
        | MessageMeaning::Template => None,
    }
}

/// Any fault of the host in this text. Unlike `never_ran`, it may have affected a running guest.
pub fn host(err: &str, vms: &impl VmsOfHost) -> Option<DriverError> {
    let said = shown(err.trim().as_bytes());
    let (code, summary) = match meaning(err)? {
        MessageMeaning::Limit => {
            let at = err.find(LIMIT).unwrap_or_default();
            (Code::HostLimit, limit(err[at..].lines().next().unwrap_or_default(), vms))
        }
        MessageMeaning::Keychain => {
            (Code::HostRefused, format!("Tart could not start the guest, and {KEYCHAIN_REMEDY}: {said}"))
        }
        MessageMeaning::Softnet => {
            let setup = "softnet needs to be set up once: `sudo chown root $(which softnet) && sudo chmod u+s $(which softnet)`";
            (Code::HostRefused, format!("{setup}: {said}"))
        }
        MessageMeaning::Host => (Code::HostRefused, format!("Tart cannot run a guest on this host now: {said}")),
        MessageMeaning::Configurations => {
            let names = vms.unreadable();
            // It is our clone's alone, or was replaced since.
            if names.iter().all(|name| vms.is_ours(name)) {
                return None;
            }
            let names = names.join(", ");
            let summary = format!(
                "Tart starts no guest while the configuration of another VM cannot be read; repair or remove it ({names}): {said}"
            );
            (Code::HostRefused, summary)
        }
        MessageMeaning::AlreadyRunning | MessageMeaning::Busy | MessageMeaning::Clone | MessageMeaning::Template => {
            return None;
        }
    };
    Some(DriverError::new(ErrorKind::Host, code, summary).tail(err))
}

/// Message for a host whose kernel refuses one more macOS guest. Tart names the other VMs that it sees running; slots
/// may also be held by other programs or users, or be leaked.
fn limit(line: &str, vms: &impl VmsOfHost) -> String {
    let names: Vec<&str> = match line.split_once("(other running VMs: ").and_then(|(_, rest)| rest.split_once(')')) {
        Some((names, _)) => names.split(',').map(str::trim).filter(|n| !n.is_empty()).collect(),
        None => Vec::new(),
    };
    // Tart names all running VMs. Those with Linux hold none of these slots.
    let names = names.into_iter().filter(|name| vms.os(name) != Some(GuestOs::Linux));
    let reached = "the host runs as many macOS guests as its kernel allows";
    let (mine, others): (Vec<&str>, Vec<&str>) = names.partition(|name| vms.is_ours(name));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> ExitStatus {
        std::os::unix::process::ExitStatusExt::from_raw(code << 8)
    }

    /// VMs whose names say what they are.
    #[derive(Default)]
    struct Vms(Vec<String>);

    impl VmsOfHost for Vms {
        fn is_ours(&self, name: &str) -> bool {
            name.starts_with("mayfly-")
        }

        fn os(&self, name: &str) -> Option<GuestOs> {
            Some(if name.ends_with("-linux") { GuestOs::Linux } else { GuestOs::Macos })
        }

        fn unreadable(&self) -> Vec<String> {
            self.0.clone()
        }
    }

    fn failed(code: i32, err: &str) -> DriverError {
        failed_beside(code, err, Vms::default())
    }

    fn failed_beside(code: i32, err: &str, vms: Vms) -> DriverError {
        match start(Some(exit(code)), "", err, &vms) {
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
            (" (other running VMs: a-linux, mayfly-1-linux)", "and there is none of them to be seen"),
            (" (other running VMs: a-linux, b, mayfly-1)", "other VMs run beside Mayfly's (b)"),
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
        let cases: [(i32, &str, ErrorKind, Code); 15] = [
            (
                1,
                "disk /x/disk.img seems to be already in use, unmount it first in Finder",
                ErrorKind::Permanent,
                Code::TemplateInvalid,
            ),
            (1, "Error: the specified VM \"mayfly-1\" does not exist", ErrorKind::Instance, Code::BootFailed),
            (
                1,
                "Error: VM is missing some of its files (config.json, disk.img or nvram.bin)",
                ErrorKind::Instance,
                Code::BootFailed,
            ),
            (1, "Error: VM is missing files for a supported layout: x", ErrorKind::Instance, Code::BootFailed),
            (
                1,
                "Error: The data couldn’t be read because it isn’t in the correct format.",
                ErrorKind::Instance,
                Code::BootFailed,
            ),
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
            start(Some(exit(2)), "", "VM \"x\" is already running!", &Vms::default()),
            StartFailure::AlreadyRunning
        ));
    }

    #[test]
    fn a_broken_configuration_is_the_fault_of_its_owner() {
        let text = "Error: The data couldn’t be read because it is missing.";
        let theirs = failed_beside(1, text, Vms(vec!["mayfly-1".into(), "my build".into()]));
        assert_eq!((theirs.kind, theirs.code), (ErrorKind::Host, Code::HostRefused));
        assert!(theirs.summary.contains("my build") && theirs.summary.contains("repair or remove it"), "{theirs}");
        let mine = failed_beside(1, text, Vms(vec!["mayfly-1".into()]));
        assert_eq!((mine.kind, mine.code), (ErrorKind::Instance, Code::BootFailed));
    }

    #[test]
    fn no_message_hides_a_later_one_of_the_table() {
        for (at, (message, meant)) in MESSAGES.iter().enumerate() {
            assert_eq!(meaning(message), Some(*meant), "{message}");
            assert!(!MESSAGES[..at].iter().any(|(earlier, _)| message.contains(earlier)), "{message} is never found");
        }
    }

    #[test]
    fn an_unknown_text_is_shown_cut() {
        let error = failed(1, &"x".repeat(500));
        assert_eq!(error.summary, format!("Tart did not start the guest (exit status: 1): \"{}\"…", "x".repeat(200)));
        let StartFailure::Failed(error) = start(None, "said on stdout\n", "", &Vms::default()) else { panic!() };
        assert_eq!(error.summary, "Tart did not start the guest (its exit status is not known): \"said on stdout\"");
        assert_eq!(failed(1, "").summary, "Tart did not start the guest (exit status: 1): nothing");
        assert_eq!(shown("ä".repeat(150).as_bytes()).chars().filter(|c| *c == 'ä').count(), 100);
    }
}
