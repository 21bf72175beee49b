//! Handles guests that their hypervisor paused because the host's disk is full.
//!
//! A pause loses nothing: the failed write is repeated when the guest is resumed. So a guest with a runner is kept
//! while space is freed, and is resumed. It ends only if there is no space for a long time: by then the CI system has
//! given up its job.

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
        guest_heartbeats::GuestHeartbeats,
        logs::{LogSource, Logs},
    },
    templates::Catalog,
};

/// Interval of tries to resume the guest.
const TRY_EVERY: Duration = Duration::from_secs(2);
/// A pause that follows the previous one within this time continues the same incident.
const RECOVERED: Duration = Duration::from_secs(60);

pub(super) struct FullDisk {
    ledger: Ledger,
    logs: Logs,
    catalog: Arc<Catalog>,
    heartbeats: GuestHeartbeats,
    clock: Clock,
    /// How long a guest may stay paused.
    give_up_after: Duration,
}

impl FullDisk {
    pub fn new(parts: &Parts, give_up_after: Duration) -> Self {
        let Parts { ledger, logs, catalog, heartbeats, clock, .. } = parts.clone();
        Self { ledger, logs, catalog, heartbeats, clock, give_up_after }
    }

    /// Returns the reason when the guest has ended, or has been paused for too long.
    pub async fn guest_gone(&self, driver: &Arc<dyn Driver>, vm: &Vm) -> Result<GoneCause, Failure> {
        let name = vm.instance();
        let mut trouble: Option<Trouble> = None;
        loop {
            let cause = driver.ended(&name).await?;
            if cause != GoneCause::HostDiskFull {
                return Ok(cause);
            }
            // A paused guest cannot report.
            self.heartbeats.note(vm.id());
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
        let detail = "the guest is paused because the host's disk is full; it continues when there is enough space";
        tracing::warn!(vm.id = %vm.id(), "{detail}");
        self.note(vm, "the host's disk is full: the guest is paused").await;
        let fault = Fault { code: Code::HostFull, detail: detail.to_owned(), at: self.clock.now() };
        let expect = Expect::Attempt { state: vm.state, attempt: vm.attempt };
        // With a full disk, the database may not be writable either.
        if let Err(error) = self.ledger.apply(vm.id(), expect, Event::StepFailed { fault }, self.clock.now()).await {
            tracing::warn!(vm.id = %vm.id(), error = %error, "cannot record that the guest is paused");
        }
    }

    /// Appends a line to the vm's log.
    async fn note(&self, vm: &Vm, text: &str) {
        let line = format!("[mayfly: {} {text}]\n", self.clock.now());
        if let Err(error) = self.logs.append(vm.id(), LogSource::Hypervisor, line.into_bytes()).await {
            tracing::warn!(vm.id = %vm.id(), error = %error, "cannot write the vm's log");
        }
    }
}

/// An incident: when the disk was found full, and when the guest was resumed, if it was.
#[derive(Clone, Copy)]
struct Trouble {
    began: Instant,
    resumed: Option<Instant>,
}
