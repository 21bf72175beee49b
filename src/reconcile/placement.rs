//! Gives free slots to queued vms, oldest first. The ledger checks the capacity in its transaction; this loop decides
//! when to try.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;

use super::host::HostObserver;
use crate::{
    domain::{
        EventKind, ResolvedSpec,
        capacity::{Capacity, Usage},
        host::HostView,
    },
    parts::Parts,
    platform::Clock,
    store::{Change, Ledger, Reader, ledger::Placed, placement::HostOffer},
};

/// While vms are queued, the host is inspected at this interval: foreign instances end without an event.
const LOOK_EVERY: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub(super) struct Placement {
    ledger: Ledger,
    reader: Reader,
    host: HostObserver,
    clock: Clock,
    capacity: Capacity,
}

impl Placement {
    pub fn new(parts: &Parts, host: HostObserver, capacity: Capacity) -> Self {
        let Parts { ledger, reader, clock, .. } = parts.clone();
        Self { ledger, reader, host, clock, capacity }
    }

    pub async fn place_forever(self) {
        let mut changes = self.ledger.changes().subscribe();
        loop {
            let placed = if self.reader.queue_length().await.unwrap_or(1) > 0 { self.place().await } else { None };
            if placed.is_some_and(|placed| placed.look_again) {
                continue;
            }
            let held = placed.map(|placed| placed.held);
            // Changes that came during placement are still in the channel and are handled now.
            let wait = async {
                loop {
                    match changes.recv().await {
                        Ok(change) if self.concerns(&change, held) => return,
                        Ok(_) => {}
                        Err(RecvError::Lagged(_)) => return,
                        Err(RecvError::Closed) => std::future::pending().await,
                    }
                }
            };
            let due = async {
                match self.reader.next_not_before(self.clock.now()).await {
                    Ok(Some(at)) => self.clock.sleep_until(at).await,
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = due => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    async fn place(&self) -> Option<Placed> {
        let before = match self.reader.queue_snapshot().await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::error!(error = %error, "cannot read the queue of vms; retrying");
                return None;
            }
        };
        let mut view = self.host.inspect().await;
        if self.waited_for(&view).await {
            self.host.probe_drivers(false).await;
            view = self.host.inspect().await;
        }
        let now = self.clock.now();
        match self.ledger.place(HostOffer::new(&view, before, now), now).await {
            Ok(placed) => Some(placed),
            Err(error) => {
                // The store logs its own faults once.
                if self.ledger.health().fault().is_none() {
                    tracing::error!(error = %error, "cannot place vms; retrying");
                }
                None
            }
        }
    }

    /// Whether a vm waits for a driver that did not work at the last inspection.
    async fn waited_for(&self, view: &HostView) -> bool {
        let broken = |name: &String| view.driver(name).is_some_and(|d| !d.usable);
        view.drivers.iter().any(|d| !d.usable)
            && self.reader.drivers_waited_for().await.is_ok_and(|names| names.iter().any(broken))
    }

    /// Whether this event may allow another placement: a vm was queued or got its template, or capacity was released.
    /// A new vm that does not fit beside the held capacity changes nothing: its row records from the beginning that
    /// it waits for a slot.
    fn concerns(&self, change: &Change, held: Option<Usage>) -> bool {
        let d = &change.vm.spec;
        match change.recorded.event.kind() {
            EventKind::Created | EventKind::TemplateReady => {
                let fits = |s: &ResolvedSpec| held.is_none_or(|h| self.capacity.fits(&h, s.os, s.cpus, s.memory_mib));
                d.resolved().is_some_and(fits)
            }
            EventKind::InstanceAbsent | EventKind::AttemptCleared | EventKind::BudgetSpent => true,
            _ => false,
        }
    }
}
