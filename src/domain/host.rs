//! What a host can hold, and what is held of it.

use serde::{Deserialize, Serialize};

use super::template::GuestOs;

/// Apple's licence allows two macOS guests per host, and the kernel enforces it. Configuration may lower this and never
/// raise it. (macOS Software License Agreement, section 2B(iii).)
pub const MACOS_GUESTS_PER_HOST: u32 = 2;

/// The limits of this host. Every one of them holds at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    pub macos_slots: u32,
    pub linux_slots: u32,
    /// Cores that all guests together may be given.
    pub cpus: u32,
    /// Memory that all guests together may be given, in MiB.
    pub memory_mib: u32,
}

/// What vms hold, ours or foreign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub macos: u32,
    pub linux: u32,
    pub cpus: u32,
    pub memory_mib: u32,
}

impl Held {
    pub fn add(&mut self, os: GuestOs, cpus: u32, memory_mib: u32) {
        match os {
            GuestOs::Macos => self.macos += 1,
            GuestOs::Linux => self.linux += 1,
        }
        self.cpus = self.cpus.saturating_add(cpus);
        self.memory_mib = self.memory_mib.saturating_add(memory_mib);
    }

    pub fn plus(mut self, other: Held) -> Held {
        self.macos += other.macos;
        self.linux += other.linux;
        self.cpus = self.cpus.saturating_add(other.cpus);
        self.memory_mib = self.memory_mib.saturating_add(other.memory_mib);
        self
    }
}

impl Capacity {
    /// Whether one more vm of this shape fits beside what is held.
    pub fn fits(&self, held: &Held, os: GuestOs, cpus: u32, memory_mib: u32) -> bool {
        let slot = match os {
            GuestOs::Macos => held.macos < self.macos_slots.min(MACOS_GUESTS_PER_HOST),
            GuestOs::Linux => held.linux < self.linux_slots,
        };
        slot && held.cpus.saturating_add(cpus) <= self.cpus
            && held.memory_mib.saturating_add(memory_mib) <= self.memory_mib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_cannot_raise_the_macos_limit() {
        let capacity = Capacity { macos_slots: 9, linux_slots: 0, cpus: 64, memory_mib: 65536 };
        let mut held = Held::default();
        for n in 0..9 {
            assert_eq!(capacity.fits(&held, GuestOs::Macos, 2, 1024), n < MACOS_GUESTS_PER_HOST);
            held.add(GuestOs::Macos, 2, 1024);
        }
    }
}
