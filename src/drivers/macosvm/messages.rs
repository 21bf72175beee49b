//! Classifies what macosvm writes to its error output. Its exit status says little: 0 means a power-off, a crash or a
//! configuration that Apple's framework rejected; if the framework rejects a start, the process aborts (SIGABRT).
//!
//! Each line begins with a time stamp and the name of the program. A message that is not known is shown and never
//! guessed at.

use std::{fmt, os::unix::process::ExitStatusExt, process::ExitStatus};

use serde::{Deserialize, Serialize};

use crate::{
    domain::{Code, capacity::MACOS_GUESTS_PER_HOST, event::GoneCause},
    drivers::{DriverError, ErrorKind, failure::shown},
};

/// The only sign that the guest runs.
const STARTED: &str = "start completed err=nil";
const STOPPED: &str = "guest stopped";
const CRASHED: &str = "didStopWithError: ";
const BAD_USAGE: &str = "ERROR: ";

/// The meaning of a message about a failed start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartMessage {
    /// Host: the kernel runs no more macOS guests.
    KernelLimit,
    /// Host: macosvm may not connect guests to an interface.
    NoBridgeEntitlement,
    /// Host: macosvm may not run guests at all.
    NoEntitlement,
    /// Host: the login keychain is locked or missing. Since macOS 15 a macOS guest needs it to start.
    LoginKeychain,
    /// Host: another reason outside the vm.
    HostFault,
    /// A file of this VM is in use, usually for a moment.
    InUse,
    /// Template: these files will never boot here.
    TemplateFault,
}

/// All known messages: the first one in this order that is found decides.
const MESSAGES: &[(&str, StartMessage)] = &[
    ("VZErrorDomain Code=6 ", StartMessage::KernelLimit),
    ("com.apple.vm.networking", StartMessage::NoBridgeEntitlement),
    ("com.apple.security.virtualization", StartMessage::NoEntitlement),
    ("VZErrorDomain Code=-9 ", StartMessage::LoginKeychain),
    ("encountered a security error", StartMessage::LoginKeychain),
    ("Interaction is not allowed", StartMessage::LoginKeychain),
    ("The virtual machine failed to start.", StartMessage::LoginKeychain),
    ("VZErrorDomain Code=8 ", StartMessage::HostFault),
    ("No space left on device", StartMessage::HostFault),
    ("Too many open files", StartMessage::HostFault),
    ("mayfly detach: ", StartMessage::HostFault),
    ("Failed to lock auxiliary storage", StartMessage::InUse),
    ("VZErrorDomain Code=2 \"Invalid", StartMessage::TemplateFault),
    ("VZErrorDomain Code=5 ", StartMessage::TemplateFault),
];

fn meaning(err: &str) -> Option<StartMessage> {
    MESSAGES.iter().find(|(message, _)| err.contains(message)).map(|(_, meaning)| *meaning)
}

pub fn started(err: &str) -> bool {
    err.lines().any(|line| line.trim_end().ends_with(STARTED))
}

/// The cause of the guest's end. The first message counts.
pub fn end(err: &str) -> Option<GoneCause> {
    err.lines().map(str::trim_end).find_map(|line| {
        let (_, message) = line.split_once("VM ")?;
        if message.ends_with(STOPPED) {
            Some(GoneCause::GuestPowerOff)
        } else if message.contains(CRASHED) {
            Some(GoneCause::HypervisorError)
        } else {
            None
        }
    })
}

/// The exit status of a macosvm, if the service that started it observed the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    code: Option<i32>,
    signal: Option<i32>,
}

impl From<ExitStatus> for ExitRecord {
    fn from(status: ExitStatus) -> ExitRecord {
        ExitRecord { code: status.code(), signal: status.signal() }
    }
}

impl ExitRecord {
    /// The cause of an end without a message. SIGKILL may also be sent by a system that is out of memory.
    pub fn cause(self) -> GoneCause {
        const STOPS: [rustix::process::Signal; 3] =
            [rustix::process::Signal::TERM, rustix::process::Signal::INT, rustix::process::Signal::HUP];
        if STOPS.iter().any(|signal| Some(signal.as_raw()) == self.signal) {
            GoneCause::HostStop
        } else {
            GoneCause::Unknown
        }
    }
}

/// The guests that macosvm runs here beside the one that was refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunningGuests {
    pub own: usize,
    pub foreign: usize,
}

/// Why a macosvm ended before its guest ran. `status`: if it is known.
pub fn start_failure(status: Option<ExitStatus>, err: &str, beside: RunningGuests) -> DriverError {
    let said = shown(reason_line(err).as_bytes());
    let (kind, code, what) = match meaning(err) {
        Some(StartMessage::KernelLimit) => return limit(beside).tail(err),
        Some(StartMessage::NoBridgeEntitlement) => (
            ErrorKind::Host,
            Code::HostRefused,
            "macosvm may not connect guests to an interface: it needs the entitlement com.apple.vm.networking, which Apple \
             grants on request; set drivers.macosvm.network = \"nat\", or use a macosvm that is signed with it"
                .to_owned(),
        ),
        Some(StartMessage::NoEntitlement) => (
            ErrorKind::Host,
            Code::HostRefused,
            "macosvm may not run guests: sign it with the entitlement com.apple.security.virtualization (`codesign --sign - \
             --entitlements macosvm.entitlements --force macosvm`)"
                .to_owned(),
        ),
        Some(StartMessage::LoginKeychain) => (
            ErrorKind::Host,
            Code::HostRefused,
            "macosvm could not start the guest, and the login keychain of the user that runs Mayfly is probably locked or \
             missing; log that user in at the screen, or `security unlock-keychain`"
                .to_owned(),
        ),
        Some(StartMessage::HostFault) => {
            (ErrorKind::Host, Code::HostRefused, "macosvm cannot run a guest on this host now".to_owned())
        }
        Some(StartMessage::InUse) => {
            (ErrorKind::Retry, Code::BootFailed, "a file of this VM is in use".to_owned())
        }
        Some(StartMessage::TemplateFault) => {
            (ErrorKind::Permanent, Code::TemplateInvalid, "macosvm cannot boot this template".to_owned())
        }
        // The arguments depend on the version only, so every vm would fail in the same way.
        None if err.lines().any(|line| line.trim_start().starts_with(BAD_USAGE)) => (
            ErrorKind::Host,
            Code::HostUnavailable,
            "the installed macosvm does not accept its arguments".to_owned(),
        ),
        None => (ErrorKind::Retry, Code::BootFailed, "macosvm did not start the guest".to_owned()),
    };
    DriverError::new(kind, code, format!("{what} ({}): {said}", ShownStatus(status))).tail(err)
}

/// The host's fault that keeps a guest from running, if this text shows one.
pub fn host_fault(err: &str, beside: RunningGuests) -> Option<DriverError> {
    match meaning(err)? {
        StartMessage::KernelLimit
        | StartMessage::NoBridgeEntitlement
        | StartMessage::NoEntitlement
        | StartMessage::LoginKeychain
        | StartMessage::HostFault => Some(start_failure(None, err, beside)),
        StartMessage::InUse | StartMessage::TemplateFault => None,
    }
}

struct ShownStatus(Option<ExitStatus>);

impl fmt::Display for ShownStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(status) => status.fmt(f),
            None => f.write_str("its exit status is not known"),
        }
    }
}

/// The line with the reason: the exception or the error, else the last one.
fn reason_line(err: &str) -> &str {
    let lines = || err.lines().map(str::trim).filter(|line| !line.is_empty());
    let reasons = ["Exception in VM init: ", "start completed err=", BAD_USAGE, "mayfly detach: "];
    let reason = lines().find_map(|line| reasons.iter().find_map(|reason| Some(&line[line.find(reason)?..])));
    reason.or_else(|| lines().next_back()).unwrap_or_default()
}

/// macosvm does not show which guests run. Other programs or users may hold slots, and slots may leak.
fn limit(beside: RunningGuests) -> DriverError {
    let reached = "the host runs as many macOS guests as its kernel allows";
    let RunningGuests { own, foreign } = beside;
    let summary = if foreign > 0 {
        format!("{reached}; guests of macosvm that Mayfly did not start: {foreign}")
    } else if own >= MACOS_GUESTS_PER_HOST as usize {
        format!("{reached}: {own} of them are Mayfly's")
    } else {
        let seen = match own {
            0 => "none of them in macosvm".to_owned(),
            own => format!("only {own} of them in macosvm"),
        };
        format!(
            "{reached}, and {seen}: another program or user holds the slot, or the kernel did not free that of an ended guest; if \
             this lasts and no other guest runs, restart the host"
        )
    };
    DriverError::new(ErrorKind::Host, Code::HostLimit, summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDED: &str = include_str!("fixtures/run-guest-stopped.err");
    const CRASH: &str = include_str!("fixtures/run-crashed.err");
    const LIMIT: &str = include_str!("fixtures/run-limit.err");
    const INVALID: &str = include_str!("fixtures/run-exception.err");

    fn exit(raw: i32) -> ExitStatus {
        ExitStatus::from_raw(raw)
    }

    fn failed(raw: i32, err: &str) -> DriverError {
        start_failure(Some(exit(raw)), err, RunningGuests::default())
    }

    #[test]
    fn start_and_end_are_read_from_the_messages() {
        assert!(started(ENDED) && started(CRASH) && !started(LIMIT) && !started(INVALID));
        assert!(!started("start completed err=nilpotent\n") && !started(""));
        assert_eq!(end(ENDED), Some(GoneCause::GuestPowerOff));
        assert_eq!(end(CRASH), Some(GoneCause::HypervisorError));
        assert_eq!(end(LIMIT), None);
        assert_eq!(end(&format!("{ENDED}{CRASH}")), Some(GoneCause::GuestPowerOff), "the first one counts");
        assert_eq!(end("something guest stopped\n"), None);
    }

    #[test]
    fn without_a_message_the_signal_gives_the_cause() {
        for (raw, cause) in [
            (15, GoneCause::HostStop),
            (2, GoneCause::HostStop),
            (1, GoneCause::HostStop),
            (9, GoneCause::Unknown),
            (6, GoneCause::Unknown),
            (0, GoneCause::Unknown),
            (1 << 8, GoneCause::Unknown),
        ] {
            let record = ExitRecord::from(exit(raw));
            let read: ExitRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
            assert_eq!(read.cause(), cause, "{raw}");
        }
    }

    #[test]
    fn each_known_failure_has_its_kind_and_code() {
        let exception = |text: &str| INVALID.replace("The number of CPUs is too large.", text);
        for (raw, err, kind, code, says) in [
            (6, LIMIT.to_owned(), ErrorKind::Host, Code::HostLimit, "none of them in macosvm"),
            (
                0,
                exception("The process doesn’t have the “com.apple.vm.networking” entitlement."),
                ErrorKind::Host,
                Code::HostRefused,
                "drivers.macosvm.network = \"nat\"",
            ),
            (
                0,
                exception("The process doesn’t have the “com.apple.security.virtualization” entitlement."),
                ErrorKind::Host,
                Code::HostRefused,
                "codesign --sign",
            ),
            (6, LIMIT.replace("Code=6", "Code=-9"), ErrorKind::Host, Code::HostRefused, "login keychain"),
            (6, LIMIT.replace("Code=6", "Code=8"), ErrorKind::Host, Code::HostRefused, "on this host now (signal: 6"),
            (6, LIMIT.replace("Code=6", "Code=5"), ErrorKind::Permanent, Code::TemplateInvalid, "this template"),
            (
                0,
                INVALID.to_owned(),
                ErrorKind::Permanent,
                Code::TemplateInvalid,
                "exit status: 0): \"Exception in VM init",
            ),
            (
                6,
                LIMIT
                    .replace("Code=6", "Code=2")
                    .replace("The maximum", "Failed to lock auxiliary storage. The maximum"),
                ErrorKind::Retry,
                Code::BootFailed,
                "in use",
            ),
            // Another text with the code of an invalid configuration says nothing about the template.
            (6, LIMIT.replace("Code=6", "Code=2"), ErrorKind::Retry, Code::BootFailed, "Code=2"),
            (
                1 << 8,
                "ERROR: configuration path can only be specified once\n".to_owned(),
                ErrorKind::Host,
                Code::HostUnavailable,
                "does not accept its arguments",
            ),
            (127 << 8, "mayfly detach: cannot run x: gone\n".to_owned(), ErrorKind::Host, Code::HostRefused, "now"),
            (9, String::new(), ErrorKind::Retry, Code::BootFailed, "signal: 9"),
            (0, "2026 macosvm[1:2] a new word\n".to_owned(), ErrorKind::Retry, Code::BootFailed, "a new word"),
        ] {
            let error = failed(raw, &err);
            assert_eq!((error.kind, error.code), (kind, code), "{error}");
            assert!(error.summary.contains(says), "{error}");
        }
    }

    #[test]
    fn the_limit_names_the_visible_guests() {
        for (own, foreign, says) in [
            (2, 0, "2 of them are Mayfly's"),
            (1, 1, "guests of macosvm that Mayfly did not start: 1"),
            (1, 0, "only 1 of them in macosvm"),
        ] {
            let error = start_failure(None, LIMIT, RunningGuests { own, foreign });
            assert!(error.summary.contains(says), "{error}");
        }
        assert!(host_fault(LIMIT, RunningGuests::default()).is_some());
        assert!(host_fault(INVALID, RunningGuests::default()).is_none());
        assert!(host_fault(ENDED, RunningGuests::default()).is_none());
    }
}
