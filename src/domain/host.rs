//! The host as last inspected: its drivers, its instances, and the limits that its system enforces.

use serde::{Deserialize, Serialize};

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use utoipa::ToSchema;

use super::{
    capacity::{Capacity, Usage},
    error::Fault,
    ids::VmId,
    network_support::NetworkSupport,
    state::State,
    template::{Arch, GuestOs},
};

/// One instance on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// The driver that sees it.
    pub driver: String,
    /// The hypervisor's name for it.
    pub name: String,
    /// The vm that it belongs to, if it is one of Mayfly's.
    #[schema(value_type = Option<String>, format = "uuid")]
    pub vm_id: Option<VmId>,
    pub running: bool,
    pub os: GuestOs,
    pub cpus: u32,
    pub memory_mib: u32,
}

/// A driver on this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DriverView {
    pub name: String,
    /// Whether it can run guests here.
    pub usable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<Arch>,
    /// `kvm`, `hvf`, `tcg`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<String>,
    /// Why a better accelerator is not used, what that means for speed, and what to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Why it cannot run guests; this is checked again periodically.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// The network modes that it can enforce.
    #[serde(default)]
    pub network: NetworkSupport,
}

/// The newest list of a driver's instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub driver: String,
    /// The kinds of guest that the driver can run.
    pub guests: Vec<GuestOs>,
    /// When the list was requested. `None`: there is none yet.
    pub at: Option<Timestamp>,
    /// Why there is no newer list. The instances shown are then those of the last one.
    pub fault: Option<Fault>,
}

/// The system refused to run as many guests of a kind as there are slots: guests that no driver lists use the
/// slots, or the system failed to release one. Until it runs more again, no more than `guests` are started, except
/// one vm from time to time as a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ceiling {
    pub os: GuestOs,
    /// Number of guests that ran when it refused.
    pub admits: u32,
    /// The first refusal: its message and time.
    pub fault: Fault,
    pub last_at: Timestamp,
    /// When one more is tried.
    pub retry_at: Timestamp,
    pub refusals: u32,
}

impl Ceiling {
    /// Number of guests of this kind that may run now.
    pub fn now(&self, now: Timestamp) -> u32 {
        self.admits.saturating_add(u32::from(now >= self.retry_at))
    }
}

/// The host refused vms of a driver for a reason other than the number of guests: a full disk, a locked keychain. They wait
/// until it accepts one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverRefusal {
    pub driver: String,
    /// What was refused: the clone or the start.
    pub step: State,
    /// The first refusal.
    pub fault: Fault,
    pub last_at: Timestamp,
    pub refusals: u32,
}

/// A refusal that did not occur for this long concerns no vm any more: those that wait try again within a minute or two.
const REFUSAL_IS_OLD: SignedDuration = SignedDuration::from_mins(10);

/// The host at its last inspection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostView {
    pub capacity: Capacity,
    pub drivers: Vec<DriverView>,
    /// The age of each driver's part of `instances`.
    pub listings: Vec<Listing>,
    /// Everything that runs on this host, Mayfly's and foreign.
    pub instances: Vec<Instance>,
    /// At most one for each kind of guest.
    pub ceilings: Vec<Ceiling>,
    /// At most one for each driver, step and code.
    pub refusals: Vec<DriverRefusal>,
    /// When the oldest of the listings was asked for.
    pub observed_at: Timestamp,
    /// `false` until the first inspection of the host is complete.
    pub observed: bool,
}

impl HostView {
    pub fn driver(&self, name: &str) -> Option<&DriverView> {
        self.drivers.iter().find(|d| d.name == name)
    }

    pub fn listing(&self, driver: &str) -> Option<&Listing> {
        self.listings.iter().find(|l| l.driver == driver)
    }

    /// Whether this driver may start guests: it works, and its running guests are known.
    pub fn can_start(&self, driver: &str) -> bool {
        self.driver(driver).is_some_and(|d| d.usable)
            && self.listing(driver).is_some_and(|l| l.at.is_some() && l.fault.is_none())
    }

    /// Why the number of running guests is unknown for this kind and driver.
    pub fn unlisted(&self, os: GuestOs, driver: &str) -> Option<&Fault> {
        let counts = |l: &&Listing| {
            // The limit of two macOS guests per host is a term of Apple's licence, so guests of other drivers count,
            // and an estimate is not sufficient. A driver that has never worked here runs none.
            let alike = os == GuestOs::Macos && l.guests.contains(&os);
            l.driver == driver || (alike && (l.at.is_some() || self.driver(&l.driver).is_some_and(|d| d.usable)))
        };
        self.listings.iter().filter(counts).find_map(|l| l.fault.as_ref())
    }

    /// The kinds of guest whose number of running guests is unknown, for all drivers together.
    pub fn uncounted(&self) -> Vec<GuestOs> {
        [GuestOs::Macos, GuestOs::Linux].into_iter().filter(|os| self.unlisted(*os, "").is_some()).collect()
    }

    /// Whether an instance of this vm runs.
    pub fn runs(&self, vm: VmId) -> bool {
        self.instances.iter().any(|i| i.running && i.vm_id == Some(vm))
    }

    /// How many guests of a kind run, Mayfly's and foreign, without this one.
    pub fn running_beside(&self, os: GuestOs, vm: VmId) -> u32 {
        let others = self.instances.iter().filter(|i| i.running && i.os == os && i.vm_id != Some(vm));
        u32::try_from(others.count()).unwrap_or(u32::MAX)
    }

    /// The system refused a guest although fewer run than there are slots.
    pub fn refused(&mut self, os: GuestOs, running: u32, fault: Fault, pause: Duration, longest: Duration) {
        let slots = self.capacity.slots(os);
        if running >= slots {
            // The usage explains the refusal: the host has no fault, the inspection was outdated.
            return;
        }
        let at = fault.at;
        let mut ceiling = match self.ceilings.iter().position(|c| c.os == os) {
            Some(known) => self.ceilings.swap_remove(known),
            None => Ceiling { os, admits: running, fault, last_at: at, retry_at: at, refusals: 0 },
        };
        let wait = pause.saturating_mul(1 << ceiling.refusals.min(16)).min(longest);
        ceiling.admits = running;
        ceiling.last_at = at;
        ceiling.retry_at = at.saturating_add(wait).unwrap_or(at);
        ceiling.refusals += 1;
        self.ceilings.push(ceiling);
    }

    /// Moves the times of the next test starts by a step of the clock.
    pub fn clock_stepped(&mut self, by: SignedDuration) {
        for ceiling in &mut self.ceilings {
            ceiling.retry_at = ceiling.retry_at.saturating_add(by).unwrap_or(ceiling.retry_at);
        }
    }

    /// Records that this many guests of a kind run now. Returns the ceiling that this removes.
    pub fn admitted(&mut self, os: GuestOs, running: u32) -> Option<Ceiling> {
        let lifted = self.ceilings.iter().position(|c| c.os == os && running > c.admits)?;
        Some(self.ceilings.swap_remove(lifted))
    }

    /// The host refused this step of a vm.
    pub fn refused_step(&mut self, driver: &str, step: State, fault: Fault) {
        let at = fault.at;
        self.refusals.retain(|r| at.duration_since(r.last_at) < REFUSAL_IS_OLD);
        let known = |r: &&mut DriverRefusal| r.driver == driver && r.step == step && r.fault.code == fault.code;
        match self.refusals.iter_mut().find(known) {
            Some(known) => {
                // What it says now, since when it is refused.
                known.fault.detail = fault.detail;
                known.last_at = at;
                known.refusals += 1;
            }
            None => {
                self.refusals.push(DriverRefusal { driver: driver.to_owned(), step, fault, last_at: at, refusals: 1 })
            }
        }
    }

    /// The host accepted this step of a vm. Returns the refusals that this ends.
    pub fn accepted_step(&mut self, driver: &str, step: State) -> Vec<DriverRefusal> {
        self.refusals.extract_if(.., |r| r.driver == driver && r.step == step).collect()
    }

    /// The refusals that keep vms waiting.
    pub fn current_refusals(&self, now: Timestamp) -> impl Iterator<Item = &DriverRefusal> {
        self.refusals.iter().filter(move |r| now.duration_since(r.last_at) < REFUSAL_IS_OLD)
    }

    /// How many guests of this kind may run here at once: none if no driver runs any.
    pub fn slots(&self, os: GuestOs) -> u32 {
        let runs = self.listings.iter().any(|listing| listing.guests.contains(&os));
        if runs { self.capacity.slots(os) } else { 0 }
    }

    /// Resources used by foreign instances.
    pub fn foreign(&self) -> Usage {
        let mut held = Usage::default();
        for i in self.instances.iter().filter(|i| i.vm_id.is_none() && i.running) {
            held.add(i.os, i.cpus, i.memory_mib);
        }
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn view() -> HostView {
        HostView {
            capacity: Capacity { macos_slots: 2, linux_slots: 4, cpus: 8, memory_mib: 8192, max_kept_seconds: 3600 },
            drivers: Vec::new(),
            listings: Vec::new(),
            instances: Vec::new(),
            ceilings: Vec::new(),
            refusals: Vec::new(),
            observed_at: at(0),
            observed: true,
        }
    }

    #[test]
    fn a_ceiling_is_what_ran_and_is_tried_again_ever_more_rarely() {
        let fault = |s| Fault { code: crate::domain::Code::HostLimit, detail: format!("refused at {s}"), at: at(s) };
        let (pause, longest) = (Duration::from_secs(2), Duration::from_secs(60));
        let mut view = view();
        view.refused(GuestOs::Macos, 2, fault(0), pause, longest);
        assert!(view.ceilings.is_empty(), "two run: that is the law and no fault");

        let mut now = 0;
        for (n, wait) in [2, 4, 8, 16, 32, 60, 60].into_iter().enumerate() {
            view.refused(GuestOs::Macos, 1, fault(now), pause, longest);
            let c = &view.ceilings[0];
            assert_eq!((c.admits, c.fault.at, c.last_at, c.retry_at), (1, at(0), at(now), at(now + wait)), "{n}");
            assert_eq!((c.now(at(now)), c.now(at(now + wait))), (1, 2));
            now += wait;
        }
        assert_eq!(view.admitted(GuestOs::Linux, 4), None);
        assert_eq!(view.admitted(GuestOs::Macos, 1), None);
        assert_eq!(view.admitted(GuestOs::Macos, 2).map(|c| c.refusals), Some(7));
        assert!(view.ceilings.is_empty());
    }

    #[test]
    fn a_refusal_lasts_until_the_same_step_is_accepted_or_no_vm_waits() {
        let fault = |s, code| Fault { code, detail: format!("refused at {s}"), at: at(s) };
        let mut view = view();
        use crate::domain::Code;
        view.refused_step("tart", State::Booting, fault(0, Code::HostRefused));
        view.refused_step("tart", State::Booting, fault(30, Code::HostRefused));
        view.refused_step("tart", State::Cloning, fault(31, Code::HostFull));
        let now: Vec<_> = view.current_refusals(at(40)).cloned().collect();
        assert_eq!((now.len(), now[0].refusals, now[0].fault.at, now[0].last_at), (2, 2, at(0), at(30)));
        assert_eq!(now[0].fault.detail, "refused at 30");
        assert!(view.accepted_step("qemu", State::Cloning).is_empty());
        assert_eq!(view.accepted_step("tart", State::Cloning).len(), 1);
        assert_eq!(view.current_refusals(at(40)).count(), 1);
        assert_eq!(view.current_refusals(at(30 + 600)).count(), 0);
    }

    #[test]
    fn macos_guests_are_counted_on_every_driver_that_runs_them() {
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let fault = Fault { code: crate::domain::Code::HostUnavailable, detail: "no answer".to_owned(), at };
        let driver = |name: &str, usable| DriverView {
            name: name.to_owned(),
            usable,
            version: None,
            arch: None,
            accelerator: None,
            note: None,
            fault: None,
            network: NetworkSupport::default(),
        };
        let listing = |name: &str, guests: &[GuestOs], at, fault| Listing {
            driver: name.to_owned(),
            guests: guests.to_vec(),
            at,
            fault,
        };
        let view = |listed_before: bool, usable| HostView {
            capacity: Capacity { macos_slots: 2, linux_slots: 4, cpus: 8, memory_mib: 8192, max_kept_seconds: 3600 },
            drivers: vec![driver("a", true), driver("b", usable), driver("c", true)],
            listings: vec![
                listing("a", &[GuestOs::Macos, GuestOs::Linux], Some(at), None),
                listing("b", &[GuestOs::Macos, GuestOs::Linux], listed_before.then_some(at), Some(fault.clone())),
                listing("c", &[GuestOs::Linux], Some(at), None),
            ],
            instances: Vec::new(),
            ceilings: Vec::new(),
            refusals: Vec::new(),
            observed_at: at,
            observed: true,
        };
        for (listed_before, usable) in [(true, true), (true, false), (false, true)] {
            let view = view(listed_before, usable);
            assert!(view.unlisted(GuestOs::Macos, "a").is_some(), "b may run one more");
            assert_eq!(view.uncounted(), [GuestOs::Macos]);
            assert_eq!((view.can_start("a"), view.can_start("b"), view.can_start("c")), (true, false, true));
            for (driver, unknown) in [("a", false), ("b", true), ("c", false)] {
                assert_eq!(view.unlisted(GuestOs::Linux, driver).is_some(), unknown, "{driver}");
            }
        }
        // Not installed here, and never was.
        assert_eq!(view(false, false).unlisted(GuestOs::Macos, "a"), None);
    }
}
