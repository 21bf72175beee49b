//! Cores and memory of this machine, for defaults.

use std::{sync::OnceLock, time::Duration};

use super::process::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostResources {
    pub cpus: u32,
    pub memory_mib: u32,
}

/// Taken when the host does not say: enough for one small guest, too little to hurt.
const UNKNOWN_MEMORY_MIB: u32 = 4096;
/// It answers at once, and is asked once.
const SYSCTL: Duration = Duration::from_secs(5);
/// Left to the host itself.
const RESERVED_MIB: u32 = 1024;

impl HostResources {
    /// This machine, looked at once.
    pub fn this() -> HostResources {
        static HOST: OnceLock<HostResources> = OnceLock::new();
        *HOST.get_or_init(|| HostResources {
            cpus: std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX)),
            memory_mib: memory_mib().unwrap_or(UNKNOWN_MEMORY_MIB),
        })
    }

    /// Linux shares cores well, and CI jobs wait a lot; on a Mac the licence keeps guests few, and each is to be fast.
    pub fn guest_cpus(self) -> u32 {
        if cfg!(target_os = "linux") { self.cpus.saturating_mul(2) } else { self.cpus }
    }

    pub fn guest_memory_mib(self) -> u32 {
        self.memory_mib.saturating_sub(RESERVED_MIB).max(512)
    }
}

fn memory_mib() -> Option<u32> {
    if cfg!(target_os = "macos") {
        let output = Command::new("/usr/sbin/sysctl", SYSCTL).args(["-n", "hw.memsize"]).run_blocking().ok()?;
        of_memsize(&String::from_utf8(output.stdout).ok()?)
    } else {
        of_meminfo(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }
}

fn of_meminfo(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    u32::try_from(kib / 1024).ok()
}

fn of_memsize(text: &str) -> Option<u32> {
    let bytes: u64 = text.trim().parse().ok()?;
    u32::try_from(bytes / (1024 * 1024)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_systems_write_it() {
        assert_eq!(of_meminfo("MemTotal:       24683900 kB\nMemFree:        19895596 kB\n"), Some(24105));
        assert_eq!(of_meminfo("MemFree: 1 kB\n"), None);
        assert_eq!(of_memsize("17179869184\n"), Some(16384));
        assert_eq!(of_memsize(""), None);
    }

    #[test]
    fn a_small_host_still_gets_something() {
        assert_eq!(HostResources { cpus: 1, memory_mib: 900 }.guest_memory_mib(), 512);
    }
}
