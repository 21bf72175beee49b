//! Lists all QEMUs of this host: Mayfly's by their files and owner, foreign ones by their command lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
};

use super::{
    args,
    instance::{self, QemuPresence},
    paths::QemuPaths,
    probe::PROBE_NAME,
};
use crate::{
    domain::{GuestOs, InstanceName},
    drivers::{
        Listed,
        process::{CommandLine, Process},
    },
};

/// `names`: the instances that have a directory. `processes`: all processes.
pub async fn own(
    instances_dir: &Path,
    names: Vec<InstanceName>,
    processes: &[(i32, CommandLine)],
) -> io::Result<Vec<Listed>> {
    let mut ours: BTreeMap<String, (InstanceName, bool)> =
        names.into_iter().map(|name| (name.to_string(), (name, true))).collect();
    // A QEMU of ours whose directory was removed.
    for (pid, line) in processes {
        if let Some(name) = instance_of(line, instances_dir)
            && is_own(*pid).await?
        {
            ours.entry(name.to_string()).or_insert((name, false));
        }
    }
    let mut found = Vec::new();
    for (text, (name, has_directory)) in ours {
        let process = match instance::find_among(&QemuPaths::new(instances_dir, &name), processes).await {
            Ok(QemuPresence::Ours(process) | QemuPresence::Starting(process)) => Some(process.pid()),
            Ok(QemuPresence::Stranger(pid)) => Some(pid),
            Ok(QemuPresence::Nothing) if has_directory => None,
            // Only a command line matches, which is no proof.
            Ok(QemuPresence::Nothing) => continue,
            Err(error) => {
                tracing::debug!(instance = %name, %error, "cannot inspect an instance; it counts as running");
                found.push(entry(text, true, true, (0, 0)));
                continue;
            }
        };
        let line = process.and_then(|pid| processes.iter().find(|(p, _)| *p == pid));
        found.push(entry(text, true, process.is_some(), line.map_or((0, 0), |(_, line)| shape(line))));
    }
    Ok(found)
}

/// All foreign QEMUs.
pub async fn foreign(instances_dir: &Path, processes: &[(i32, CommandLine)]) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for (pid, line) in processes.iter().filter(|(_, line)| is_qemu(line.program())) {
        // A process of another user with our names is foreign.
        let named_as_ours = instance_of(line, instances_dir).is_some() || shown(line) == Some(PROBE_NAME);
        if named_as_ours && is_own(*pid).await? {
            continue;
        }
        found.push(stranger(*pid, line));
    }
    Ok(found)
}

/// Instances and foreign guests according to command lines. Good enough for people; never to act on.
pub fn by_command_lines(
    instances_dir: &Path,
    processes: &[(i32, CommandLine)],
) -> (BTreeSet<InstanceName>, Vec<Listed>) {
    let ours = processes.iter().filter_map(|(_, line)| instance_of(line, instances_dir)).collect();
    let foreign = processes.iter().filter(|(_, line)| {
        is_qemu(line.program()) && instance_of(line, instances_dir).is_none() && shown(line) != Some(PROBE_NAME)
    });
    (ours, foreign.map(|(pid, line)| stranger(*pid, line)).collect())
}

fn stranger(pid: i32, line: &CommandLine) -> Listed {
    let name = shown(line).map_or_else(|| format!("{}:{pid}", line.program()), str::to_owned);
    entry(name, false, true, shape(line))
}

async fn is_own(pid: i32) -> io::Result<bool> {
    Ok(Process::find(pid).await?.is_some_and(|process| process.is_own()))
}

fn entry(name: String, ours: bool, running: bool, (cpus, memory_mib): (u32, u32)) -> Listed {
    Listed { name, ours, running, os: GuestOs::Linux, cpus, memory_mib }
}

fn shape(line: &CommandLine) -> (u32, u32) {
    args::shape(line.option("-smp"), line.option("-m"))
}

/// The guest name in the command line.
fn shown(line: &CommandLine) -> Option<&str> {
    line.option("-name").and_then(|name| name.split(',').next()).map(|name| name.trim_start_matches("guest="))
}

fn is_qemu(program: &str) -> bool {
    program.starts_with("qemu-system-") || program == "qemu-kvm"
}

/// The instance of which this process was given the pid file in our directory.
fn instance_of(line: &CommandLine, instances_dir: &Path) -> Option<InstanceName> {
    let dir = instances_dir.to_str()?;
    let file = match line {
        CommandLine::Exact(_) => line.option("-pidfile")?.strip_prefix(dir)?,
        // The directory's path may contain blanks, so words cannot be compared.
        CommandLine::Joined(text) => text.split_once(&format!(" -pidfile {dir}"))?.1.split(' ').next()?,
    };
    let name = file.strip_prefix('/')?.strip_suffix("/qemu.pid")?;
    InstanceName::read(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::VmId;

    fn exact(text: &str) -> CommandLine {
        CommandLine::Exact(text.split(' ').map(str::to_owned).collect())
    }

    #[tokio::test]
    async fn own_and_foreign_guests_are_distinguished() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path().display();
        let [stopped, gone, elsewhere] = [(); 3].map(|()| VmId::mint().instance());
        // These pids do not exist on this host: only their command lines are known.
        let processes = [
            (1_000_000_001, exact("/sbin/init")),
            (
                1_000_000_012,
                exact(&format!(
                    "/usr/bin/qemu-system-x86_64 -smp 2 -m 512 -name {gone},process=x -pidfile {d}/{gone}/qemu.pid"
                )),
            ),
            (
                1_000_000_020,
                exact(&format!(
                    "qemu-system-x86_64 -smp 4 -m 2G -name {elsewhere} -pidfile /other/{elsewhere}/qemu.pid"
                )),
            ),
            (1_000_000_021, exact("/usr/libexec/qemu-kvm -name guest=web,debug-threads=on -m size=1G")),
            (1_000_000_022, exact("qemu-system-aarch64 -M virt")),
            (1_000_000_024, exact("vim qemu-system-x86_64.txt")),
        ];
        std::fs::create_dir(dir.path().join(stopped.as_str())).unwrap();
        let mut list = own(dir.path(), vec![stopped.clone()], &processes).await.unwrap();
        assert_eq!(list.len(), 1);
        list.extend(foreign(dir.path(), &processes).await.unwrap());
        let shown =
            |name: &str| list.iter().find(|l| l.name == name).map(|l| (l.ours, l.running, l.cpus, l.memory_mib));
        assert_eq!(shown(stopped.as_str()), Some((true, false, 0, 0)));
        assert_eq!(shown(gone.as_str()), Some((false, true, 2, 512)), "a command line is no proof");
        assert_eq!(shown(elsewhere.as_str()), Some((false, true, 4, 2048)), "another Mayfly's");
        assert_eq!(shown("web"), Some((false, true, 1, 1024)));
        assert_eq!(shown("qemu-system-aarch64:1000000022"), Some((false, true, 1, 128)));
        assert_eq!(list.len(), 5);
    }

    #[test]
    fn a_joined_command_line_may_hold_blanks() {
        let name = VmId::mint().instance();
        let line = format!("/opt/homebrew/bin/qemu-system-aarch64 -m 512 -pidfile /a b/c/{name}/qemu.pid -chardev x");
        let line = CommandLine::Joined(line);
        assert_eq!(instance_of(&line, Path::new("/a b/c")), Some(name));
        assert_eq!(instance_of(&line, Path::new("/a b")), None);
    }
}
