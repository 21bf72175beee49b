//! Checks a Linux host: the user, the memory, and the systemd unit.

use std::{collections::BTreeMap, path::Path};

use super::{
    finding::{Check, Finding, strange},
    probe::{HostProbe, Probed, Ran, Unseen, refusal},
    setup::DoctorSetup,
};

const SYSTEM: Check = Check::new("host.system", "System", "Linux on x86-64 or arm64");
const USER: Check = Check::new("host.user", "User", "a user of its own, not root");
const MEMORY: Check =
    Check::new("host.memory", "Memory", "the host has the memory of slots.memory_mib, and its cgroup allows it");
const UNIT: Check = Check::new("service.unit", "systemd unit", "mayfly.service enabled and running");

const MIB: u64 = 1 << 20;
const UNIT_NAME: &str = "mayfly.service";

pub struct LinuxFacts {
    uid: u32,
    kernel: Probed<Vec<u8>>,
    meminfo: Probed<Vec<u8>>,
    /// `memory.max` of this process's cgroup and of those above it.
    limits: Vec<Vec<u8>>,
    unit: Unit,
}

enum Unit {
    NoSystemd,
    Shown(Probed<Ran>),
}

/// Whether systemd runs this machine: it makes this directory when it starts.
pub async fn has_systemd(probe: &dyn HostProbe) -> bool {
    probe.entry(Path::new("/run/systemd/system")).await.is_ok()
}

pub fn judge(facts: &LinuxFacts, setup: &DoctorSetup) -> Vec<Finding> {
    vec![system(facts), user(facts.uid), memory(facts, setup)]
}

pub async fn look(probe: &dyn HostProbe) -> LinuxFacts {
    let unit = async {
        if !has_systemd(probe).await {
            return Unit::NoSystemd;
        }
        // Not `Environment`, which may hold secrets.
        let args = ["show", UNIT_NAME, "--property=LoadState,ActiveState,SubState,UnitFileState,User"];
        Unit::Shown(probe.run("systemctl".as_ref(), &args, &[]).await)
    };
    let (kernel, meminfo, limits, unit) = tokio::join!(
        probe.read(Path::new("/proc/sys/kernel/osrelease"), 256),
        probe.read(Path::new("/proc/meminfo"), 16 << 10),
        limits(probe),
        unit,
    );
    LinuxFacts { uid: probe.uid(), kernel, meminfo, limits, unit }
}

async fn limits(probe: &dyn HostProbe) -> Vec<Vec<u8>> {
    let root = Path::new("/sys/fs/cgroup");
    let own = match probe.read(Path::new("/proc/self/cgroup"), 4096).await {
        Ok(text) => String::from_utf8_lossy(&text)
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .map_or_else(|| root.to_owned(), |path| root.join(path)),
        Err(_) => root.to_owned(),
    };
    let mut limits = Vec::new();
    // Only the root cgroup of a container has this file, with the limit of the whole container.
    for dir in own.ancestors().take_while(|dir| dir.starts_with(root)) {
        limits.extend(probe.read(&dir.join("memory.max"), 64).await);
    }
    limits
}

fn system(facts: &LinuxFacts) -> Finding {
    match &facts.kernel {
        Ok(release) => {
            SYSTEM.ok(format!("Linux {} on {}", String::from_utf8_lossy(release).trim(), std::env::consts::ARCH))
        }
        Err(why) => SYSTEM.could_not_look(why),
    }
}

fn user(uid: u32) -> Finding {
    if uid != 0 {
        return USER.ok(format!("user {uid}"));
    }
    USER.warn(
        "root, so the hypervisor of every guest runs as root, too",
        "run the service (and `mayfly doctor`) as a separate user, as deploy/systemd/mayfly.service does",
    )
}

/// `Name:  123 kB`, in MiB.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? / 1024)
}

fn memory(facts: &LinuxFacts, setup: &DoctorSetup) -> Finding {
    let text = match &facts.meminfo {
        Ok(text) => String::from_utf8_lossy(text).into_owned(),
        Err(why) => return MEMORY.could_not_look(format!("/proc/meminfo: {why}")),
    };
    let (Some(total), Some(available)) = (meminfo(&text, "MemTotal"), meminfo(&text, "MemAvailable")) else {
        return MEMORY.could_not_look(strange("MemTotal and MemAvailable in /proc/meminfo", &text));
    };
    let promised = u64::from(setup.config.slots.memory_mib);
    // `max`, or bytes.
    let limit = facts
        .limits
        .iter()
        .filter_map(|text| std::str::from_utf8(text).ok()?.trim().parse::<u64>().ok())
        .min()
        .map(|bytes| bytes / MIB);
    if let Some(limit) = limit.filter(|limit| *limit < promised) {
        return MEMORY.fail(
            format!("the cgroup's limit is {limit} MiB, but guests may use {promised}"),
            "raise the limit (MemoryMax), or lower slots.memory_mib: the kernel kills guests that go beyond it",
        );
    }
    if total < promised {
        return MEMORY.fail(
            format!("{total} MiB in all, but guests may use {promised}"),
            format!("lower slots.memory_mib to at most {total}, less what the host needs"),
        );
    }
    let found = format!("{available} of {total} MiB available, but guests may use {promised}");
    if available < 512 {
        return MEMORY.warn(found, "find what uses the memory; guests will be slow or be killed");
    }
    MEMORY.ok(found)
}

/// `runs`: whether the service answers.
pub fn unit(facts: &LinuxFacts, runs: bool) -> Finding {
    let ran = match &facts.unit {
        Unit::NoSystemd => return UNIT.not_needed("this machine does not run systemd"),
        Unit::Shown(Err(Unseen::Absent)) => return UNIT.not_needed("systemctl is not installed"),
        Unit::Shown(Err(why)) => return UNIT.could_not_look(why),
        Unit::Shown(Ok(ran)) if !ran.succeeded() => return UNIT.could_not_look(format!("systemctl: {}", refusal(ran))),
        Unit::Shown(Ok(ran)) => ran,
    };
    let properties: BTreeMap<&str, &str> = ran.stdout.lines().filter_map(|line| line.split_once('=')).collect();
    let of = |name: &str| properties.get(name).copied().unwrap_or_default();
    let user = of("User");
    let whose = if user.is_empty() { String::new() } else { format!(", as {user}") };
    let enabled = of("UnitFileState");
    match (of("LoadState"), of("ActiveState")) {
        ("not-found", _) if runs => UNIT.not_needed("not installed; the service was started in another way"),
        ("not-found", _) => UNIT.not_needed("not installed"),
        ("loaded", "active") if enabled == "disabled" => UNIT.warn(
            format!("running{whose}, and not started when the machine starts"),
            format!("enable it:\n    sudo systemctl enable {UNIT_NAME}"),
        ),
        ("loaded", "active") => UNIT.ok(format!("running{whose}, {enabled}")),
        ("loaded", state @ ("failed" | "inactive" | "activating" | "deactivating" | "reloading")) => UNIT.fail(
            format!("{state} ({}){whose}", of("SubState")),
            format!(
                "find the cause, then start it:\n    journalctl -u {UNIT_NAME} -n 50\n    sudo systemctl restart {UNIT_NAME}"
            ),
        ),
        ("masked", _) => UNIT.warn(
            "masked: it cannot be started",
            format!("allow it to be started:\n    sudo systemctl unmask {UNIT_NAME}"),
        ),
        _ => UNIT.could_not_look(strange("LoadState and ActiveState", &ran.stdout)),
    }
}
