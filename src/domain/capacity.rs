//! The limits of a host, and how much of them is used.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::template::GuestOs;

/// Apple's licence allows two macOS guests per host, and the kernel enforces it. Configuration may lower this and never
/// raise it. (macOS Software License Agreement, section 2B(iii).)
pub const MACOS_GUESTS_PER_HOST: u32 = 2;

/// The limits of this host. All apply together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capacity {
    pub macos_slots: u32,
    pub linux_slots: u32,
    /// Cores of all guests together.
    pub cpus: u32,
    /// Memory of all guests together, in MiB.
    pub memory_mib: u32,
    /// Longest time for which a failed vm is kept and holds its slot, in seconds.
    pub max_kept_seconds: u32,
}

/// Resources used by vms, Mayfly's or foreign ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Held)]
pub struct Usage {
    pub macos: u32,
    pub linux: u32,
    pub cpus: u32,
    pub memory_mib: u32,
}

impl Usage {
    pub fn add(&mut self, os: GuestOs, cpus: u32, memory_mib: u32) {
        match os {
            GuestOs::Macos => self.macos += 1,
            GuestOs::Linux => self.linux += 1,
        }
        self.cpus = self.cpus.saturating_add(cpus);
        self.memory_mib = self.memory_mib.saturating_add(memory_mib);
    }

    pub fn guests(&self, os: GuestOs) -> u32 {
        match os {
            GuestOs::Macos => self.macos,
            GuestOs::Linux => self.linux,
        }
    }

    pub fn plus(mut self, other: Usage) -> Usage {
        self.macos += other.macos;
        self.linux += other.linux;
        self.cpus = self.cpus.saturating_add(other.cpus);
        self.memory_mib = self.memory_mib.saturating_add(other.memory_mib);
        self
    }
}

impl Capacity {
    /// Guests of this kind at once.
    pub fn slots(&self, os: GuestOs) -> u32 {
        match os {
            GuestOs::Macos => self.macos_slots.min(MACOS_GUESTS_PER_HOST),
            GuestOs::Linux => self.linux_slots,
        }
    }

    /// Whether one more vm of this size fits beside the current usage.
    pub fn fits(&self, held: &Usage, os: GuestOs, cpus: u32, memory_mib: u32) -> bool {
        held.guests(os) < self.slots(os)
            && held.cpus.saturating_add(cpus) <= self.cpus
            && held.memory_mib.saturating_add(memory_mib) <= self.memory_mib
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn configuration_cannot_raise_the_macos_limit() {
        let capacity = Capacity { macos_slots: 9, linux_slots: 0, cpus: 64, memory_mib: 65536, max_kept_seconds: 0 };
        let mut held = Usage::default();
        for n in 0..9 {
            assert_eq!(capacity.fits(&held, GuestOs::Macos, 2, 1024), n < MACOS_GUESTS_PER_HOST);
            held.add(GuestOs::Macos, 2, 1024);
        }
    }
}
