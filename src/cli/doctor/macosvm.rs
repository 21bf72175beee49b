//! Checks macosvm: its version, what it is signed for, and which other guests it runs on this Mac.

use std::path::{Path, PathBuf};

use super::{
    finding::{Check, Finding, strange},
    probe::{HostProbe, Probed, Ran, Unseen, refusal},
    setup::DoctorSetup,
};
use crate::drivers::{
    macosvm::{self, MacosvmNetworkKind, version},
    process::CommandLine,
};

const PROGRAM: Check = Check::new("macosvm.program", "macosvm", "0.2-0 or later, for macOS guests");
const SIGNATURE: Check = Check::new(
    "macosvm.signature",
    "macosvm's entitlements",
    "com.apple.security.virtualization; for bridges, com.apple.vm.networking",
);
const FOREIGN: Check = Check::new("macosvm.foreign", "Foreign macosvm guests", "none but Mayfly's");

const INSTALL: &str = "install a release, or set drivers.macosvm.binary:\n    https://github.com/s-u/macosvm/releases";
const RUN_GUESTS: &str = "com.apple.security.virtualization";
const BRIDGE: &str = "com.apple.vm.networking";

pub struct MacosvmFacts {
    name: PathBuf,
    path: Option<PathBuf>,
    version: Probed<Ran>,
    signature: Probed<Ran>,
    processes: Probed<Ran>,
    /// The directory of Mayfly's own guests, as the driver names it to macosvm.
    own: PathBuf,
}

/// `None`: the driver is disabled, so nothing is asked.
pub async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> Option<MacosvmFacts> {
    let macosvm = &setup.config.drivers.macosvm;
    if !macosvm.enabled {
        return None;
    }
    let name = macosvm.binary.clone().unwrap_or_else(|| "macosvm".into());
    let path = probe.find_program(&name);
    let (version, signature) = match &path {
        Some(path) => {
            let shown = path.display().to_string();
            let arguments = ["--display", "--entitlements", "-", "--xml", shown.as_str()];
            tokio::join!(
                probe.run(path, &["--version"], &[]),
                probe.run(Path::new("/usr/bin/codesign"), &arguments, &[])
            )
        }
        None => (Err(Unseen::Absent), Err(Unseen::Absent)),
    };
    let processes = probe.run(Path::new("/bin/ps"), &["-axww", "-o", "pid=,command="], &[]).await;
    let own = setup.at("macosvm");
    let own = probe.resolve(&own).await.unwrap_or(own);
    Some(MacosvmFacts { name, path, version, signature, processes, own })
}

pub fn judge(facts: &MacosvmFacts, setup: &DoctorSetup) -> Vec<Finding> {
    vec![program(facts), signature(facts, setup), foreign(facts, setup)]
}

fn program(facts: &MacosvmFacts) -> Finding {
    let shown = facts.path.as_deref().unwrap_or(&facts.name).display();
    let ran = match &facts.version {
        Ok(ran) if ran.succeeded() => ran,
        Ok(ran) => return PROGRAM.fail(format!("{shown} does not report its version: {}", refusal(ran)), INSTALL),
        Err(Unseen::Absent) => return PROGRAM.fail(format!("{shown} is not installed here"), INSTALL),
        Err(why) => return PROGRAM.fail(format!("{shown} does not report its version: {why}"), INSTALL),
    };
    match version::usable(ran.stdout.as_bytes()) {
        Ok(version) => PROGRAM.ok(format!("{version}, {shown}")),
        Err(why) => PROGRAM.fail(why, INSTALL),
    }
}

/// The framework refuses a program without the entitlement when a guest starts.
fn signature(facts: &MacosvmFacts, setup: &DoctorSetup) -> Finding {
    let text = match &facts.signature {
        Ok(ran) if ran.succeeded() => &ran.stdout,
        Ok(ran) => return SIGNATURE.could_not_look(format!("codesign: {}", refusal(ran))),
        Err(_) if facts.path.is_none() => return SIGNATURE.not_needed("macosvm is not installed"),
        Err(why) => return SIGNATURE.could_not_look(format!("codesign: {why}")),
    };
    if !text.trim().is_empty() && !text.contains("<plist") {
        return SIGNATURE.could_not_look(strange("a property list from codesign", text));
    }
    let bridged = setup.config.drivers.macosvm.network == MacosvmNetworkKind::Bridged;
    match (text.contains(RUN_GUESTS), bridged, text.contains(BRIDGE)) {
        (false, ..) => SIGNATURE.fail(
            "macosvm is not signed for running guests",
            "install a release, which is; or sign your own build with the file that comes with its sources:\n    \
             codesign --sign - --entitlements macosvm.entitlements --force \"$(which macosvm)\"",
        ),
        (true, true, false) => SIGNATURE.fail(
            "macosvm is not signed for bridged networks, so no guest starts",
            "Apple grants this entitlement on request only. Use macOS's NAT, in mayfly.toml:\n    \
             drivers.macosvm.network = \"nat\"",
        ),
        (true, ..) => SIGNATURE.ok(if bridged { "guests and bridges" } else { "guests" }),
    }
}

fn foreign(facts: &MacosvmFacts, setup: &DoctorSetup) -> Finding {
    let text = match &facts.processes {
        Ok(ran) if ran.succeeded() => &ran.stdout,
        Ok(ran) => return FOREIGN.could_not_look(format!("ps: {}", refusal(ran))),
        Err(why) => return FOREIGN.could_not_look(format!("ps: {why}")),
    };
    let processes = processes(text);
    // There is at least this process.
    if processes.is_empty() {
        return FOREIGN.could_not_look(strange("processes with their pids from ps", text));
    }
    let own = format!(" {}/", facts.own.display());
    let pids: Vec<&str> =
        guests(&processes, setup).filter(|(_, command)| !command.contains(&own)).map(|(pid, _)| *pid).collect();
    if pids.is_empty() {
        return FOREIGN.ok("none");
    }
    FOREIGN.warn(
        format!("{} (pid {})", pids.len(), pids.join(", ")),
        "each holds one of the two slots for macOS guests, unless its guest runs Linux. End those that are not needed, from \
         within the guest:\n    sudo shutdown -h now",
    )
}

/// The pids and command lines that `ps` has printed.
pub fn processes(text: &str) -> Vec<(&str, &str)> {
    let split = text.lines().filter_map(|line| line.trim().split_once(' '));
    split.filter(|(pid, _)| pid.bytes().all(|b| b.is_ascii_digit())).collect()
}

/// Those that are guests of macosvm.
pub fn guests<'a>(
    processes: &'a [(&'a str, &'a str)],
    setup: &DoctorSetup,
) -> impl Iterator<Item = &'a (&'a str, &'a str)> {
    let programs = macosvm::programs(setup.config.drivers.macosvm.binary.as_deref());
    processes
        .iter()
        .filter(move |(_, command)| macosvm::is_guest(&CommandLine::Joined(command.trim().to_owned()), &programs))
}
