//! Who gets the free slot: the oldest vm that fits. The sum is taken inside the ledger's transaction; this loop only says when.

use std::{sync::Arc, time::Duration};

use tokio::sync::broadcast::error::RecvError;

use super::Reconciler;
use crate::{
    domain::{EventKind, QueueReason},
    service::hosts,
};

/// While vms wait, foreign instances may leave without telling us.
const LOOK_EVERY: Duration = Duration::from_secs(2);

impl Reconciler {
    pub(super) async fn place_forever(self: Arc<Self>) {
        let mut changes = self.ledger.changes().subscribe();
        loop {
            if self.reader.queue_length().await.unwrap_or(1) > 0 {
                self.place().await;
            }
            // Everything that came in while we placed is behind us in the channel and is looked at now.
            let wait = async {
                loop {
                    match changes.recv().await {
                        Ok(change) if concerns(change.recorded.event.kind()) => return,
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

    async fn place(&self) {
        let mut view = self.look_at_instances().await;
        if !view.drivers.iter().any(|d| d.usable) {
            self.look_at_drivers(false).await;
            view = self.board.borrow().clone();
        }
        let room = hosts::room(&view);
        let now = self.clock.now();
        let placed = if room.open { self.ledger.place(room.clone(), now).await.map(|_| ()) } else { Ok(()) };
        let reason = if room.open { QueueReason::Slot } else { QueueReason::Host };
        let explained = match placed {
            Ok(()) => self.ledger.explain_queue(reason, now).await,
            Err(error) => Err(error),
        };
        if let Err(error) = explained {
            tracing::error!(error = %error, "placing failed; trying again");
        }
    }
}

/// Whether this event may let somebody in: a vm came into the queue, or what it held was given back.
fn concerns(kind: EventKind) -> bool {
    matches!(kind, EventKind::Created | EventKind::InstanceAbsent | EventKind::AttemptCleared | EventKind::BudgetSpent)
}
