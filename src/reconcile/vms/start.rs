//! Checks right before the start of a guest whether the slot of its vm is still free.
//!
//! The slot was free when placement gave it. While the template was cloned, foreign guests may have started, so the
//! host is inspected once more. If they took the slot, the attempt ends and its clone is deleted. Then the vm returns to
//! its old place in the queue.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::{observe::was_started, template::spec_of};
use crate::{
    domain::{
        Code, GuestOs, ResolvedSpec, State, Vm, VmId,
        capacity::{Capacity, Usage},
        host::HostView,
    },
    drivers::{
        Driver,
        inspector::{HostInspector, TWO_LISTS_TIMEOUT},
    },
    parts::Parts,
    platform::clock,
    reconcile::failure::{Failure, FailureKind},
    store::{Reader, placement::SlotLease},
};

/// How long to wait for a driver that does not list its instances, before the vm returns to the queue.
const UNKNOWN_FOR: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// The guests that are being started. An inspection that began before a start has ended may not show its guest.
#[derive(Default)]
struct Starts {
    starts: Mutex<HashMap<VmId, Start>>,
}

#[derive(Clone, Copy)]
struct Start {
    os: GuestOs,
    cpus: u32,
    memory_mib: u32,
    /// `None`: the start is under way.
    ended: Option<Instant>,
}

/// Held while the driver starts the guest.
pub(super) struct StartPermit<'a> {
    starts: &'a Starts,
    vm: VmId,
}

impl Drop for StartPermit<'_> {
    fn drop(&mut self) {
        if let Some(start) = self.starts.lock().get_mut(&self.vm) {
            start.ended = Some(clock::monotonic());
        }
    }
}

impl Starts {
    fn lock(&self) -> MutexGuard<'_, HashMap<VmId, Start>> {
        self.starts.lock()
    }

    /// Permits the start if the vm fits beside what counts before it, by an inspection that began at `since` or later
    /// and by leases that were read before it. Otherwise returns that usage. Permits are given one at a time: the
    /// next one counts this start.
    fn permit(
        &self,
        vm: VmId,
        spec: &ResolvedSpec,
        capacity: &Capacity,
        view: &HostView,
        leases: &[SlotLease],
        since: Instant,
    ) -> Result<StartPermit<'_>, Usage> {
        let mut starts = self.lock();
        // Older inspections are not used.
        starts.retain(|_, start| start.ended.is_none_or(|ended| clock::elapsed(ended) < 2 * TWO_LISTS_TIMEOUT));
        let unseen: HashMap<VmId, Start> = starts
            .iter()
            .filter(|(_, s)| s.ended.is_none_or(|ended| ended >= since))
            .map(|(id, s)| (*id, *s))
            .collect();
        let held = usage_before(vm, view, leases, &unseen);
        if !view.runs(vm) && !capacity.fits(&held, spec.os, spec.cpus, spec.memory_mib) {
            return Err(held);
        }
        let &ResolvedSpec { os, cpus, memory_mib, .. } = spec;
        starts.insert(vm, Start { os, cpus, memory_mib, ended: None });
        Ok(StartPermit { starts: self, vm })
    }
}

/// The usage that counts before this vm: everything that runs or is being started, and older vms whose guests are
/// still to be started. So of two vms that start at the same time, the younger one gives way to a foreign guest. The
/// lease that it holds while its clone is removed does not count, otherwise the older one would give way as well.
fn usage_before(vm: VmId, view: &HostView, leases: &[SlotLease], starts: &HashMap<VmId, Start>) -> Usage {
    let mut held = view.foreign();
    let mut counted = HashSet::from([vm]);
    for lease in leases {
        let runs = view.runs(lease.vm) || starts.contains_key(&lease.vm);
        let counts = match lease.state {
            State::Cloning | State::Booting => runs || lease.vm < vm,
            // Its guest is not started again in this attempt: if the inspection does not show it, it does not run.
            State::Stopping | State::Deleting => runs,
            State::Queued | State::Configuring | State::Running | State::Draining | State::Kept | State::Deleted => {
                true
            }
        };
        if counts && counted.insert(lease.vm) {
            held.add(lease.os, lease.cpus, lease.memory_mib);
        }
    }
    for (id, start) in starts {
        if counted.insert(*id) {
            held.add(start.os, start.cpus, start.memory_mib);
        }
    }
    for instance in view.instances.iter().filter(|i| i.running) {
        if instance.vm_id.is_some_and(|id| counted.insert(id)) {
            held.add(instance.os, instance.cpus, instance.memory_mib);
        }
    }
    held
}

/// Gives permits to start guests.
pub(super) struct StartPermits {
    starts: Starts,
    reader: Reader,
    host: HostInspector,
    capacity: Capacity,
}

impl StartPermits {
    pub fn new(parts: &Parts, capacity: Capacity) -> Self {
        let Parts { reader, host, .. } = parts.clone();
        Self { starts: Starts::default(), reader, host, capacity }
    }

    /// Returns when the guest may be started. `None`: it was started before, so no permit is needed.
    pub async fn obtain(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<Option<StartPermit<'_>>, Failure> {
        // Its job may be running since before a restart of the service: no inspection may end it.
        if was_started(driver, vm).await? {
            return Ok(None);
        }
        let spec = spec_of(vm)?;
        let give_up = clock::monotonic() + UNKNOWN_FOR;
        let mut refused = false;
        loop {
            let leases = self.reader.lease_holders().await?;
            let since = clock::monotonic();
            let view = self.host.inspect_since(since, TWO_LISTS_TIMEOUT).await;
            if let Some(fault) = view.unlisted(spec.os, &spec.driver) {
                if clock::monotonic() >= give_up {
                    return Err(Failure::new(FailureKind::Host, fault.code, fault.detail.clone()));
                }
                tokio::time::sleep(LOOK_AGAIN).await;
                continue;
            }
            match self.starts.permit(vm.id(), spec, &self.capacity, &view, &leases, since) {
                Ok(permit) => return Ok(Some(permit)),
                // One refusal may have a temporary cause: a guest that has just ended, or another command that held a
                // guest's lock for a moment.
                Err(_) if !refused => refused = true,
                Err(held) => {
                    return Err(Failure::new(FailureKind::Host, Code::SlotTaken, self.taken(spec, held, &view)));
                }
            }
        }
    }

    fn taken(&self, spec: &ResolvedSpec, held: Usage, view: &HostView) -> String {
        let (capacity, os) = (&self.capacity, spec.os);
        format!(
            "guests that were started meanwhile took its slot: {} of {} {} guests ({} of them not Mayfly's), {} of {} cores and \
             {} of {} MiB are held",
            held.guests(os),
            capacity.slots(os),
            os.as_str(),
            view.foreign().guests(os),
            held.cpus,
            capacity.cpus,
            held.memory_mib,
            capacity.memory_mib
        )
    }
}
