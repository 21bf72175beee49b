//! Every QEMU of this host: ours by where they keep their files, strangers as far as their command lines show them.

use std::{collections::BTreeMap, path::Path};

use super::{args, probe::PROBE_NAME};
use crate::{
    domain::{GuestOs, InstanceName},
    drivers::{Listed, process::CommandLine},
};

/// `names`: the directories there are. `processes`: every process there is.
pub fn listed(
    instances_dir: &Path,
    names: Vec<String>,
    processes: &[(i32, CommandLine)],
    foreign: bool,
) -> Vec<Listed> {
    let entry = |name: String, ours, running, (cpus, memory_mib)| Listed {
        name,
        ours,
        running,
        os: GuestOs::Linux,
        cpus,
        memory_mib,
    };
    let mut ours: BTreeMap<String, Listed> = names
        .into_iter()
        .filter(|name| InstanceName::parse(name).is_some())
        .map(|name| (name.clone(), entry(name, true, false, (0, 0))))
        .collect();
    let mut strangers = Vec::new();
    for (pid, line) in processes {
        let shape = args::shape(line.option("-smp"), line.option("-m"));
        let shown = line.option("-name").and_then(|n| n.split(',').next()).map(|n| n.trim_start_matches("guest="));
        if let Some(name) = instance_of(line, instances_dir) {
            // While one starts, there are two processes with the same command line.
            ours.insert(name.clone(), entry(name, true, true, shape));
        } else if foreign && is_qemu(line.program()) && shown != Some(PROBE_NAME) {
            let name = shown.map_or_else(|| format!("{}:{pid}", line.program()), str::to_owned);
            strangers.push(entry(name, false, true, shape));
        }
    }
    ours.into_values().chain(strangers).collect()
}

fn is_qemu(program: &str) -> bool {
    program.starts_with("qemu-system-") || program == "qemu-kvm"
}

/// The instance whose pid file in our directory this process was given.
fn instance_of(line: &CommandLine, instances_dir: &Path) -> Option<String> {
    let dir = instances_dir.to_str()?;
    let file = match line {
        CommandLine::Exact(_) => line.option("-pidfile")?.strip_prefix(dir)?,
        // The directory's path may contain blanks, so it cannot be found by words.
        CommandLine::Joined(text) => text.split_once(&format!(" -pidfile {dir}"))?.1.split(' ').next()?,
    };
    let name = file.strip_prefix('/')?.strip_suffix("/qemu.pid")?;
    InstanceName::parse(name).map(|id| id.instance().as_str().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::VmId;

    fn exact(text: &str) -> CommandLine {
        CommandLine::Exact(text.split(' ').map(str::to_owned).collect())
    }

    #[test]
    fn ours_and_strangers_are_told_apart() {
        let [running, stopped, gone] = [(); 3].map(|()| VmId::mint().instance());
        let elsewhere = VmId::mint().instance();
        let ours = |name: &InstanceName| {
            format!("/usr/bin/qemu-system-x86_64 -smp 2 -m 512 -name {name},process=x -pidfile /d/{name}/qemu.pid")
        };
        let processes = [
            (1, exact("/sbin/init")),
            (10, exact(&ours(&running))),
            (11, exact(&ours(&running))),
            (12, exact(&ours(&gone))),
            (
                20,
                exact(&format!(
                    "qemu-system-x86_64 -smp 4 -m 2G -name {elsewhere} -pidfile /other/{elsewhere}/qemu.pid"
                )),
            ),
            (21, exact("/usr/libexec/qemu-kvm -name guest=web,debug-threads=on -m size=1G")),
            (22, exact("qemu-system-aarch64 -M virt")),
            (23, exact("qemu-system-x86_64 -name mayfly-probe -m 64")),
            (24, exact("vim qemu-system-x86_64.txt")),
        ];
        let names = vec![running.to_string(), stopped.to_string(), "lost+found".to_owned()];
        let list = listed(Path::new("/d"), names.clone(), &processes, true);
        let shown =
            |name: &str| list.iter().find(|l| l.name == name).map(|l| (l.ours, l.running, l.cpus, l.memory_mib));
        assert_eq!(shown(running.as_str()), Some((true, true, 2, 512)));
        assert_eq!(shown(stopped.as_str()), Some((true, false, 0, 0)));
        assert_eq!(shown(gone.as_str()), Some((true, true, 2, 512)), "a process without its directory is still ours");
        assert_eq!(shown(elsewhere.as_str()), Some((false, true, 4, 2048)), "another Mayfly's");
        assert_eq!(shown("web"), Some((false, true, 1, 1024)));
        assert_eq!(shown("qemu-system-aarch64:22"), Some((false, true, 1, 128)));
        assert_eq!(list.len(), 6);
        assert_eq!(listed(Path::new("/d"), names, &processes, false).len(), 3);
    }

    #[test]
    fn a_joined_command_line_may_hold_blanks() {
        let name = VmId::mint().instance();
        let line = format!("/opt/homebrew/bin/qemu-system-aarch64 -m 512 -pidfile /a b/c/{name}/qemu.pid -chardev x");
        let line = CommandLine::Joined(line);
        assert_eq!(instance_of(&line, Path::new("/a b/c")).as_deref(), Some(name.as_str()));
        assert_eq!(instance_of(&line, Path::new("/a b")), None);
    }
}
