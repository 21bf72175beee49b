//! Foreign macosvm processes. Each is a guest that may hold one of the two slots for macOS guests. A command line is no
//! proof, so these processes are only counted, and never signalled.

use std::path::Path;

use serde_json::Value;

use super::description::LARGEST;
use crate::{
    domain::GuestOs,
    drivers::{Listed, process::CommandLine},
};

const MIB: u64 = 1 << 20;
/// The assumed size of a VM whose description cannot be read, so that the host is never overcommitted.
const UNKNOWN_CPUS: u32 = 4;
const UNKNOWN_MIB: u32 = 8192;
/// Options with which macosvm starts no guest.
const NO_GUEST: [&str; 3] = ["--version", "--help", "-h"];
/// Names of descriptions.
const JSON: &str = ".json";

/// With their processes. `is_own`: the process is one of this Mayfly's.
pub fn foreign(
    processes: &[(i32, CommandLine)],
    programs: &[String],
    is_own: impl Fn(i32) -> bool,
) -> Vec<(i32, Listed)> {
    let guests = processes.iter().filter(|(pid, line)| is_guest(line, programs) && !is_own(*pid));
    guests.map(|(pid, line)| (*pid, guest(*pid, line))).collect()
}

/// How macosvm may appear in a list of processes.
pub fn programs(binary: Option<&Path>) -> Vec<String> {
    let configured = binary.and_then(|binary| Some(binary.file_name()?.to_str()?.to_owned()));
    ["macosvm".to_owned()].into_iter().chain(configured).collect()
}

/// Whether this is the process of a guest.
pub fn is_guest(line: &CommandLine, programs: &[String]) -> bool {
    programs.iter().any(|program| program == line.program()) && !words(line).iter().any(|word| NO_GUEST.contains(word))
}

/// The arguments. In a joined command line, an argument with blanks is several words.
fn words(line: &CommandLine) -> Vec<&str> {
    match line {
        CommandLine::Exact(args) => args.iter().skip(1).map(String::as_str).collect(),
        CommandLine::Joined(text) => text.split_ascii_whitespace().skip(1).collect(),
    }
}

fn guest(pid: i32, line: &CommandLine) -> Listed {
    let words = words(line);
    let description = words.iter().rev().find(|word| word.ends_with(JSON)).map(Path::new);
    let value = description.and_then(read).unwrap_or_default();
    let number = |key: &str| value[key].as_u64();
    let cpus = number("cpus").and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).unwrap_or(UNKNOWN_CPUS);
    let memory_mib =
        number("ram").and_then(|n| u32::try_from(n.div_ceil(MIB)).ok()).filter(|n| *n > 0).unwrap_or(UNKNOWN_MIB);
    // Only a guest that is known to run Linux holds no slot.
    let os = if value["os"] == "linux" { GuestOs::Linux } else { GuestOs::Macos };
    let shown = description.map(|path| path.display().to_string());
    Listed {
        name: shown.unwrap_or_else(|| format!("{}:{pid}", line.program())),
        ours: false,
        running: true,
        os,
        cpus,
        memory_mib,
    }
}

/// A relative path is relative to a directory that is not known.
fn read(path: &Path) -> Option<Value> {
    let is_small_file = path.is_absolute() && path.metadata().is_ok_and(|m| m.is_file() && m.len() <= LARGEST);
    if !is_small_file {
        return None;
    }
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_foreign_guest_counts_as_one_of_macos_unless_it_says_linux() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let macos = file("vm.json", r#"{"cpus": 6, "ram": 6442450945}"#);
        let linux = file("linux.json", r#"{"os": "linux", "cpus": 1, "ram": 1073741824}"#);
        let broken = file("broken.json", "{");
        let exact = |text: &str| CommandLine::Exact(text.split(' ').map(str::to_owned).collect());
        let processes = [
            (1, exact("/sbin/init")),
            (2, exact(&format!("/opt/homebrew/bin/macosvm -g {macos}"))),
            (3, CommandLine::Joined(format!("macosvm --no-serial {linux}"))),
            (4, exact(&format!("macosvm {broken} --net nat"))),
            (5, exact("macosvm vm.json")),
            (6, exact("macosvm --disk /disk -c 2")),
            (7, exact("macosvm --version")),
            (8, exact(&format!("vim {macos}"))),
            (9, exact(&format!("macosvm {macos}"))),
        ];
        let listed = foreign(&processes, &["macosvm".to_owned()], |pid| pid == 9);
        let shown: Vec<_> = listed.iter().map(|(pid, l)| (*pid, l.name.as_str(), l.os, l.cpus, l.memory_mib)).collect();
        assert_eq!(
            shown,
            [
                (2, macos.as_str(), GuestOs::Macos, 6, 6145),
                (3, linux.as_str(), GuestOs::Linux, 1, 1024),
                (4, broken.as_str(), GuestOs::Macos, 4, 8192),
                (5, "vm.json", GuestOs::Macos, 4, 8192),
                (6, "macosvm:6", GuestOs::Macos, 4, 8192),
            ]
        );
        assert!(listed.iter().all(|(_, l)| l.running && !l.ours));
    }
}
