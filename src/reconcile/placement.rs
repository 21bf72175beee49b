//! Who gets the free slot: the oldest vm that fits. The sum is taken inside the ledger's transaction; this loop only says when.

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

/// While vms wait, foreign instances may leave without telling us.
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
            // Everything that came in while we placed is behind us in the channel and is looked at now.
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
        let before = match self.reader.demand().await {
            Ok(demand) => demand,
            Err(error) => {
                tracing::error!(error = %error, "cannot read the queue of vms; retrying");
                return None;
            }
        };
        let mut view = self.host.look().await;
        if self.waited_for(&view).await {
            self.host.look_at_drivers(false).await;
            view = self.host.look().await;
        }
        let now = self.clock.now();
        match self.ledger.place(HostOffer::new(&view, before, now), now).await {
            Ok(placed) => Some(placed),
            Err(error) => {
                // A fault of the database is said once, where it is found.
                if self.ledger.health().fault().is_none() {
                    tracing::error!(error = %error, "cannot place vms; retrying");
                }
                None
            }
        }
    }

    /// Whether a vm waits for a driver that did not work when it was last looked at.
    async fn waited_for(&self, view: &HostView) -> bool {
        let broken = |name: &String| view.driver(name).is_some_and(|d| !d.usable);
        view.drivers.iter().any(|d| !d.usable)
            && self.reader.drivers_waited_for().await.is_ok_and(|names| names.iter().any(broken))
    }

    /// Whether this event may let somebody in: a vm came into the queue or got its template, or what it held was given back. A new vm that does not
    /// fit beside what is held changes nothing: it waits for a slot, and its row says so from the beginning.
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
