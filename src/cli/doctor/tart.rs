//! Checks Tart: whether its version is supported, whether it answers, and which other programs run guests on this
//! Mac.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use super::{
    finding::{Check, Finding, strange},
    macosvm, modes,
    probe::{self, HostProbe, Probed, Ran, Unseen, line, refusal},
    setup::DoctorSetup,
};
use crate::{
    domain::{InstanceName, capacity::MACOS_GUESTS_PER_HOST},
    drivers::tart::{
        list::{self, TartListEntry},
        probe::{OLDEST, version_line},
    },
};

const PROGRAM: Check = Check::new("tart.program", "Tart", "2.32 or later");
const LICENCE: Check =
    Check::new("tart.licence", "Tart's licence", "FSL-1.1-ALv2 (2.33 and later): internal use is free");
const ANSWERS: Check = Check::new("tart.answers", "tart list", "an answer within 5 s, in a known format");
const FOREIGN: Check = Check::new("tart.foreign", "Foreign guests", "no macOS guests but Mayfly's");
const LEFT_OVER: Check =
    Check::new("tart.left_over", "Guests' processes", "one for each guest that Tart runs, and no others");
const SOFTNET: Check = Check::new("tart.softnet", "Softnet", "installed, and running as root (SUID)");

const INSTALL: &str = "install it:\n    brew install openai/tools/tart";
/// The first version under the new licence.
const RELICENSED: (u32, u32) = (2, 33);
/// Every guest of Apple's framework, of any program, is a process with this in its name.
const GUEST_PROCESS: &str = "com.apple.Virtualization.VirtualMachine";

pub struct TartFacts {
    name: PathBuf,
    path: Option<PathBuf>,
    version: Probed<String>,
    /// `None`: not asked, because its storage is not there and asking would make it.
    list: Option<Probed<Ran>>,
    /// Names of running guests whose own file says that they run Linux.
    linux: BTreeSet<String>,
    processes: Probed<Ran>,
    softnet: Option<Probed<probe::FileStatus>>,
}

/// The local guests that run.
fn running(list: &Option<Probed<Ran>>) -> Vec<TartListEntry> {
    match list {
        Some(Ok(ran)) if ran.succeeded() => {
            list::parse(ran.stdout.as_bytes()).unwrap_or_default().into_iter().filter(|vm| vm.running).collect()
        }
        _ => Vec::new(),
    }
}

pub async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> TartFacts {
    let tart = &setup.tart;
    let path = probe.find_program(&tart.binary);
    let version = async {
        match &path {
            Some(path) => line(&probe.run(path, &["--version"], &[]).await).map(|text| version_line(&text).to_owned()),
            None => Err(Unseen::Absent),
        }
    };
    let list = async {
        let (Some(path), Some(home)) = (&path, &tart.home) else { return (None, BTreeSet::new()) };
        if probe.entry(home).await == Err(Unseen::Absent) {
            return (None, BTreeSet::new());
        }
        let shown = home.display().to_string();
        let env = [("TART_HOME", shown.as_str()), ("TART_NO_AUTO_PRUNE", "1"), ("CI", "1")];
        let list = Some(probe.run(path, &["list", "--format", "json"], &env).await);
        let mut linux = BTreeSet::new();
        for vm in running(&list) {
            if is_linux(probe, home, &vm.name).await {
                linux.insert(vm.name);
            }
        }
        (list, linux)
    };
    let softnet = async {
        if !tart.softnet {
            return None;
        }
        Some(match probe.find_program(Path::new("softnet")) {
            Some(path) => probe.entry(&path).await,
            None => Err(Unseen::Absent),
        })
    };
    let processes = probe.run(Path::new("/bin/ps"), &["-axww", "-o", "pid=,command="], &[]);
    let (version, (list, linux), softnet, processes) = tokio::join!(version, list, softnet, processes);
    TartFacts { name: tart.binary.clone(), path, version, list, linux, processes, softnet }
}

/// What the guest's own file says. Reading it takes no lock, and lets go of none that another process holds.
async fn is_linux(probe: &dyn HostProbe, home: &Path, name: &str) -> bool {
    if name.contains('/') || name.starts_with('.') {
        return false;
    }
    let config = probe.read(&home.join("vms").join(name).join("config.json"), 1 << 20).await.unwrap_or_default();
    serde_json::from_slice::<serde_json::Value>(&config).is_ok_and(|config| config["os"] == "linux")
}

pub fn judge(facts: &TartFacts, setup: &DoctorSetup) -> Vec<Finding> {
    if !setup.tart.enabled {
        return vec![PROGRAM.not_needed("the driver is disabled (drivers.tart.enabled)")];
    }
    vec![
        program(facts),
        licence(facts),
        answers(facts, setup),
        foreign(facts),
        left_over(facts, setup),
        softnet(facts),
        modes::tart(setup),
    ]
}

/// `2.32.1` as (2, 32). Builds from source say `SNAPSHOT`.
fn parse(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn program(facts: &TartFacts) -> Finding {
    let name = facts.name.display();
    let shown = facts.path.as_deref().unwrap_or(&facts.name).display();
    let version = match &facts.version {
        Ok(version) => version,
        Err(Unseen::Absent) => return PROGRAM.fail(format!("{name} is not installed here"), INSTALL),
        Err(why) => return PROGRAM.fail(format!("{shown} does not report its version: {why}"), INSTALL),
    };
    match parse(version) {
        Some(found) if found < (OLDEST.major, OLDEST.minor) => PROGRAM.fail(
            format!("{version} is too old"),
            "bring it up to date; running guests are not touched:\n    brew install openai/tools/tart",
        ),
        Some(_) => PROGRAM.ok(format!("{version}, {shown}")),
        None if version == "SNAPSHOT" => PROGRAM.warn(
            "a build from source that does not report its version",
            "use a release, so that its behaviour is known:\n    brew install openai/tools/tart",
        ),
        None => PROGRAM.fail(strange("a version such as 2.33.0", version), INSTALL),
    }
}

fn licence(facts: &TartFacts) -> Finding {
    match facts.version.as_ref().ok().and_then(|version| parse(version)) {
        Some(version) if version < RELICENSED => LICENCE.warn(
            "Fair Source 0.9: free up to 100 CPU cores per organisation, all hosts counted",
            "count the cores of all hosts and affiliates; or update to 2.33, which has no such limit:\n    \
             brew install openai/tools/tart",
        ),
        Some(_) => LICENCE.ok("FSL-1.1-ALv2: internal use is free"),
        None => LICENCE.not_needed("the installed version is not known"),
    }
}

fn answers(facts: &TartFacts, setup: &DoctorSetup) -> Finding {
    const STUCK: &str = "find what blocks Tart (a pull, or a guest on a broken disk), and end it:\n    ps -axo pid,etime,command | grep '[t]art'";
    let ran = match &facts.list {
        None if facts.path.is_none() => return ANSWERS.not_needed("Tart is not installed"),
        None => {
            return ANSWERS.not_needed(match &setup.tart.home {
                Some(home) => format!("{} does not exist yet, and `tart list` would create it", home.display()),
                None => "neither TART_HOME nor HOME is set, so its storage is not known".to_owned(),
            });
        }
        Some(Err(why @ Unseen::TimedOut(_))) => return ANSWERS.fail(why.to_string(), STUCK),
        Some(Err(why)) => return ANSWERS.could_not_look(why),
        Some(Ok(ran)) => ran,
    };
    if !ran.succeeded() {
        return ANSWERS.fail(refusal(ran), "run it by hand to see the whole output:\n    tart list");
    }
    match list::parse(ran.stdout.as_bytes()) {
        Ok(vms) => {
            let running = vms.iter().filter(|vm| vm.running).count();
            ANSWERS.ok(format!("{} local VMs, {running} of them running", vms.len()))
        }
        Err(why) => ANSWERS
            .fail(why, "use a version of Tart that Mayfly supports (2.32 or later); the driver takes no action on an unknown answer"),
    }
}

/// Whether it is known who runs.
fn is_known(facts: &TartFacts) -> bool {
    matches!(&facts.list, Some(Ok(ran)) if ran.succeeded() && list::parse(ran.stdout.as_bytes()).is_ok())
}

fn foreign(facts: &TartFacts) -> Finding {
    if !is_known(facts) {
        return FOREIGN.not_needed("Tart did not list the running guests");
    }
    let foreign: Vec<String> = running(&facts.list)
        .into_iter()
        .map(|vm| vm.name)
        .filter(|name| InstanceName::parse(name).is_none() && !facts.linux.contains(name))
        .collect();
    if foreign.is_empty() {
        return FOREIGN.ok("none");
    }
    let slots = MACOS_GUESTS_PER_HOST;
    FOREIGN.warn(
        format!("{} of {slots} slots for macOS guests are in use by: {}", foreign.len(), foreign.join(", ")),
        format!("Apple's kernel runs at most {slots} macOS guests, counting those of all users and programs; stop those that are not needed:\n    tart stop NAME"),
    )
}

/// A slot that the kernel keeps although no guest is left is seen nowhere; a process that was left over is.
fn left_over(facts: &TartFacts, setup: &DoctorSetup) -> Finding {
    let text = match &facts.processes {
        Ok(ran) if ran.succeeded() => &ran.stdout,
        Ok(ran) => return LEFT_OVER.could_not_look(format!("ps: {}", refusal(ran))),
        Err(why) => return LEFT_OVER.could_not_look(format!("ps: {why}")),
    };
    let all = macosvm::processes(text);
    // There is at least this process.
    if all.is_empty() {
        return LEFT_OVER.could_not_look(strange("processes with their pids from ps", text));
    }
    let of_macosvm = macosvm::guests(&all, setup).count();
    let processes: Vec<&str> = all
        .iter()
        .filter(|(_, command)| command.trim().split(' ').next().is_some_and(|program| program.ends_with(GUEST_PROCESS)))
        .map(|(pid, _)| *pid)
        .collect();
    if !is_known(facts) && !processes.is_empty() {
        return LEFT_OVER.not_needed("Tart did not list the running guests");
    }
    let listed = running(&facts.list).len();
    let known = listed + of_macosvm;
    if processes.len() <= known {
        return LEFT_OVER.ok(format!("{} for {known} running guests", processes.len()));
    }
    let others = if of_macosvm == 0 { String::new() } else { format!(" and macosvm runs {of_macosvm}") };
    LEFT_OVER.warn(
        format!("{} (pid {}), but Tart lists {listed}{others}", processes.len(), processes.join(", ")),
        "each may hold one of the two slots for macOS guests. They belong to another program or user, or are left over: \
         end those that are not needed, or restart the Mac, which always frees the slots:\n    \
         ps -axo pid,user,etime,command | grep '[V]irtualMachine'",
    )
}

fn softnet(facts: &TartFacts) -> Finding {
    match &facts.softnet {
        None => SOFTNET.not_needed("not configured"),
        Some(Err(Unseen::Absent)) => {
            SOFTNET.fail("configured, but not installed", "install it:\n    brew install openai/tools/softnet")
        }
        Some(Err(why)) => SOFTNET.could_not_look(why),
        Some(Ok(entry)) if entry.uid == 0 && entry.mode & 0o4000 != 0 => SOFTNET.ok("installed, runs as root"),
        Some(Ok(_)) => SOFTNET.fail(
            "installed, but not allowed to run as root (no SUID bit)",
            "guests do not start without it, unless sudo needs no password for it:\n    \
             sudo chown root \"$(readlink -f \"$(which softnet)\")\"\n    \
             sudo chmod u+s \"$(readlink -f \"$(which softnet)\")\"",
        ),
    }
}
