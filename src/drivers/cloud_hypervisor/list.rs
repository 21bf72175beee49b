//! Lists all guests of Cloud Hypervisor on this host: Mayfly's by their files and owner, foreign ones by their command lines.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::{
    config::VmConfig,
    paths::VmmPaths,
    presence::{self, API_SOCKET, VmmPresence},
};
use crate::{
    domain::{GuestOs, InstanceName},
    drivers::{
        Listed,
        process::{CommandLine, Process},
    },
};

/// What Cloud Hypervisor gives a guest that is not described on its command line.
const DEFAULT_SHAPE: (u32, u32) = (1, 512);

/// `names`: the instances that have a directory. `processes`: all processes.
pub async fn own(dir: &Path, names: Vec<InstanceName>, processes: &[(i32, CommandLine)]) -> io::Result<Vec<Listed>> {
    let mut ours: BTreeMap<String, (InstanceName, bool)> =
        names.into_iter().map(|name| (name.to_string(), (name, true))).collect();
    // One of ours whose directory was removed.
    for (pid, line) in processes {
        if let Some(name) = instance_of(line, dir)
            && is_own(*pid).await?
        {
            ours.entry(name.to_string()).or_insert((name, false));
        }
    }
    let mut found = Vec::new();
    for (text, (name, has_directory)) in ours {
        let paths = VmmPaths::new(dir, &name);
        let running = match presence::find_among(&paths, Some(processes)).await {
            Ok(VmmPresence::Ours(_) | VmmPresence::Stranger(_)) => true,
            Ok(VmmPresence::Nothing) if has_directory => false,
            // Only a command line matches, which is no proof.
            Ok(VmmPresence::Nothing) => continue,
            Err(error) => {
                tracing::debug!(instance = %name, %error, "cannot inspect an instance; it counts as running");
                true
            }
        };
        let (cpus, memory_mib) = if running { described(&paths) } else { (0, 0) };
        found.push(Listed { name: text, ours: true, running, os: GuestOs::Linux, cpus, memory_mib });
    }
    Ok(found)
}

/// All foreign guests. Those that are described over their API only have an unknown size, and count as the smallest one.
pub async fn foreign(dir: &Path, processes: &[(i32, CommandLine)]) -> io::Result<Vec<Listed>> {
    let mut found = Vec::new();
    for (pid, line) in processes.iter().filter(|(_, line)| line.program() == "cloud-hypervisor") {
        // A process of another user with our names is foreign.
        if (instance_of(line, dir).is_some() || is_probe(line)) && is_own(*pid).await? {
            continue;
        }
        let (cpus, memory_mib) = shape(line);
        let name =
            api_socket(line).map_or_else(|| format!("cloud-hypervisor:{pid}"), |path| path.display().to_string());
        found.push(Listed { name, ours: false, running: true, os: GuestOs::Linux, cpus, memory_mib });
    }
    Ok(found)
}

async fn is_own(pid: i32) -> io::Result<bool> {
    Ok(Process::find(pid).await?.is_some_and(|process| process.is_own()))
}

/// The size in the instance's own description.
fn described(paths: &VmmPaths) -> (u32, u32) {
    let config = std::fs::read(paths.config()).ok().and_then(|bytes| serde_json::from_slice::<VmConfig>(&bytes).ok());
    config
        .map_or((0, 0), |config| (config.cpus.boot_vcpus, u32::try_from(config.memory.size >> 20).unwrap_or(u32::MAX)))
}

fn is_probe(line: &CommandLine) -> bool {
    line.option("--kernel").is_some_and(|kernel| kernel.ends_with(super::probe::KERNEL))
}

fn api_socket(line: &CommandLine) -> Option<PathBuf> {
    let socket = line.option(API_SOCKET)?;
    Some(socket.strip_prefix("path=").unwrap_or(socket).into())
}

/// The instance whose API socket in our directory this process was given.
fn instance_of(line: &CommandLine, dir: &Path) -> Option<InstanceName> {
    let socket = api_socket(line)?;
    let name = InstanceName::read(socket.parent()?.file_name()?.to_str()?)?;
    (VmmPaths::new(dir, &name).api() == socket).then_some(name)
}

/// Processors and MiB on the command line.
fn shape(line: &CommandLine) -> (u32, u32) {
    let part = |option: &str, key: &str| {
        let value = line.option(option)?;
        value.split(',').find_map(|part| part.strip_prefix(key)?.strip_prefix('=').map(str::to_owned))
    };
    let cpus = part("--cpus", "boot").and_then(|count| count.parse().ok()).filter(|count| *count > 0);
    let memory = part("--memory", "size").and_then(|size| mebibytes(&size)).filter(|size| *size > 0);
    (cpus.unwrap_or(DEFAULT_SHAPE.0), memory.unwrap_or(DEFAULT_SHAPE.1))
}

/// `512M`, `2G`, or bytes.
fn mebibytes(size: &str) -> Option<u32> {
    let (number, shift) = match size.as_bytes().last()? {
        b'K' => (&size[..size.len() - 1], 10),
        b'M' => (&size[..size.len() - 1], 20),
        b'G' => (&size[..size.len() - 1], 30),
        _ => (size, 0),
    };
    u32::try_from(number.parse::<u64>().ok()?.checked_mul(1 << shift)? >> 20).ok()
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
            (1_000_000_001, exact(&format!("/usr/bin/cloud-hypervisor --api-socket path={d}/{gone}/api.sock"))),
            (1_000_000_002, exact(&format!("cloud-hypervisor --api-socket path=/other/{elsewhere}/api.sock"))),
            (1_000_000_003, exact("cloud-hypervisor --cpus boot=4,max=8 --memory size=2G,shared=on --kernel k")),
            (1_000_000_004, exact("vim cloud-hypervisor")),
        ];
        std::fs::create_dir(dir.path().join(stopped.as_str())).unwrap();
        let list = own(dir.path(), vec![stopped.clone()], &processes).await.unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!((list[0].name.as_str(), list[0].ours, list[0].running), (stopped.as_str(), true, false));
        let list = foreign(dir.path(), &processes).await.unwrap();
        let shapes: Vec<_> = list.iter().map(|guest| (guest.cpus, guest.memory_mib)).collect();
        assert_eq!(shapes, [(1, 512), (1, 512), (4, 2048)], "a command line is no proof");
        assert!(list[1].name.contains(elsewhere.as_str()));
        assert!(list.iter().all(|guest| guest.running && !guest.ours));
    }

    #[test]
    fn sizes_are_read_as_the_program_does() {
        assert_eq!(
            ["512M", "1G", "1048576", "2048K", "x", ""].map(mebibytes),
            [Some(512), Some(1024), Some(1), Some(2), None, None]
        );
    }
}
