//! The sections `[slots]` and `[drivers.fake]`.

use crate::{
    domain::capacity::{Capacity, MACOS_GUESTS_PER_HOST},
    platform::{host_resources::HostResources, settings::section},
};

section! {
    /// How many guests this host runs at once. All limits apply together.
    pub struct SlotsSection {
        /// Linux guests at once.
        linux: u32 = HostResources::this().cpus, shown as "the host's cores", in 0..=4096;
        /// macOS guests at once: at most 2, because Apple's licence and kernel allow no more on one host.
        macos: u32 = MACOS_GUESTS_PER_HOST;
        /// Cores of all guests together.
        cpus: u32 = HostResources::this().guest_cpus(), shown as "the host's cores; twice that on Linux", in 1..=65_536;
        /// Memory of all guests together, in MiB.
        memory_mib: u32 = HostResources::this().guest_memory_mib(), shown as "the host's memory less 1024",
            in 32..=4_294_967_295;
        /// Guests that Mayfly did not start take slots too.
        count_foreign: bool = true;
        /// Longest time for which a failed vm may be kept for debugging (`keep_on_failure`); it holds its slot. 0: none is
        /// kept.
        max_kept_seconds: u32 = 3600, in 0..=2_592_000;
    }
}

section! {
    /// A driver that only simulates guests. For tests and demonstrations.
    pub struct FakeSection {
        /// Use this driver. Jobs on it are not run.
        enabled: bool = false;
    }
}

impl SlotsSection {
    pub fn capacity(&self) -> Capacity {
        Capacity {
            macos_slots: self.macos,
            linux_slots: self.linux,
            cpus: self.cpus,
            memory_mib: self.memory_mib,
            max_kept_seconds: self.max_kept_seconds,
        }
    }
}
