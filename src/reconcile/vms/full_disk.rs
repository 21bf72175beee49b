//! Guests that their hypervisor paused because the host's disk is full.
//!
//! Nothing is lost by the pause: the write that found no room is made again when the guest goes on. So a guest with a runner
//! is kept, room is made, and the guest goes on. It ends only if there is no room for long: what waits for it elsewhere, as
//! a CI system does, has given it up by then.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    domain::{Code, Event, Fault, Vm, event::GoneCause},
    drivers::Driver,
    parts::Parts,
    platform::{Clock, clock},
    reconcile::failure::Failure,
    store::{
        Expect, Ledger,
        logs::{LogSource, Logs},
    },
    templates::Catalog,
};

/// Between two tries to let the guest go on.
const TRY_EVERY: Duration = Duration::from_secs(2);
/// A guest that has run for so long since the last pause begins a new one. Less, and it is the same trouble.
const RECOVERED: Duration = Duration::from_secs(60);

pub(super) struct FullDisk {
    ledger: Ledger,
    logs: Logs,
    catalog: Arc<Catalog>,
    clock: Clock,
    /// How long a guest may stay paused.
    give_up_after: Duration,
}

impl FullDisk {
    pub fn new(parts: &Parts, give_up_after: Duration) -> Self {
        let Parts { ledger, logs, catalog, clock, .. } = parts.clone();
        Self { ledger, logs, catalog, clock, give_up_after }
    }

    /// Returns when the guest has ended or was stopped for good, with the reason.
    pub async fn guest_gone(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<GoneCause, Failure> {
        let name = vm.instance();
        let mut trouble: Option<Trouble> = None;
        loop {
            let cause = driver.ended(&name).await?;
            if cause != GoneCause::HostDiskFull {
                return Ok(cause);
            }
            let now = clock::monotonic();
            let known = trouble.filter(|t| t.resumed.is_none_or(|at| now.duration_since(at) < RECOVERED));
            let began = match known {
                Some(Trouble { began, resumed: Some(_) }) => {
                    self.note(vm, "the host's disk is full again: the guest is paused").await;
                    began
                }
                Some(Trouble { began, resumed: None }) => began,
                None => {
                    self.note_pause(vm).await;
                    now
                }
            };
            if let Err(error) = self.catalog.room_for_paused_guest().await {
                tracing::debug!(vm.id = %vm.id(), error = %error, "cannot free disk space for a paused guest");
            }
            let resumed = match driver.resume(&name).await {
                Ok(()) => {
                    self.note(vm, "there is room: the guest goes on").await;
                    tracing::info!(vm.id = %vm.id(), paused_seconds = clock::elapsed(began).as_secs_f64(), "resumed a paused guest");
                    Some(clock::monotonic())
                }
                Err(error) if clock::elapsed(began) >= self.give_up_after => {
                    let waited = self.give_up_after.as_secs();
                    self.note(vm, &format!("no room for {waited} s, the guest is given up: {error}")).await;
                    return Ok(cause);
                }
                Err(error) => {
                    tracing::debug!(vm.id = %vm.id(), error = %error, "cannot resume a paused guest yet");
                    None
                }
            };
            trouble = Some(Trouble { began, resumed });
            sleep(TRY_EVERY).await;
        }
    }

    async fn note_pause(&self, vm: &Vm) {
        let detail = "the guest is paused because the host's disk is full; it goes on when there is room";
        tracing::warn!(vm.id = %vm.id(), "{detail}");
        self.note(vm, "the host's disk is full: the guest is paused").await;
        let fault = Fault { code: Code::HostFull, detail: detail.to_owned(), at: self.clock.now() };
        let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
        // Where the disk is full, the database may have no room either.
        if let Err(error) = self.ledger.apply(vm.id(), expect, Event::StepFailed { fault }, self.clock.now()).await {
            tracing::warn!(vm.id = %vm.id(), error = %error, "cannot record that the guest is paused");
        }
    }

    /// A line in the vm's log.
    async fn note(&self, vm: &Vm, text: &str) {
        let line = format!("[mayfly: {} {text}]\n", self.clock.now());
        if let Err(error) = self.logs.append(vm.id(), LogSource::Hypervisor, line.into_bytes()).await {
            tracing::warn!(vm.id = %vm.id(), error = %error, "cannot write the vm's log");
        }
    }
}

/// A full disk, and when the guest went on despite it.
#[derive(Clone, Copy)]
struct Trouble {
    began: Instant,
    resumed: Option<Instant>,
}
