//! Inspects the host: which drivers work, and which instances run.

use std::{sync::Arc, time::Duration};

use crate::{
    domain::{
        Fault, ResolvedSpec, State, Vm,
        host::{DriverView, HostView},
    },
    drivers::{
        DriverError, DriverProbe,
        inspector::{HostInspector, TWO_LISTS_TIMEOUT},
        registry::DriverRegistry,
    },
    parts::Parts,
    platform::{Clock, clock},
};

/// Longest pause between two test starts while the host's operating system refuses guests.
const LONGEST_LIMIT_PAUSE: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub(super) struct HostObserver {
    drivers: Arc<DriverRegistry>,
    host: HostInspector,
    clock: Clock,
    /// First pause of a ceiling after the host's operating system refused a guest.
    limit_pause: Duration,
}

impl HostObserver {
    pub fn new(parts: &Parts, limit_pause: Duration) -> Self {
        let Parts { drivers, host, clock, .. } = parts.clone();
        Self { drivers, host, clock, limit_pause }
    }

    /// The latest inspection of the host.
    pub fn last(&self) -> HostView {
        self.host.last()
    }

    /// Probes every driver. The first probe is slow: it may boot a guest to test an accelerator.
    pub async fn probe_drivers(&self, fresh: bool) {
        let mut views = Vec::new();
        for (name, driver) in self.drivers.iter() {
            let name = name.to_owned();
            let network = driver.capabilities().network;
            let probed = driver.probe(fresh).await;
            self.say_what_is_new(&name, &probed);
            views.push(match probed {
                Ok(probe) => DriverView {
                    name,
                    usable: true,
                    version: Some(probe.version),
                    arch: Some(probe.arch),
                    accelerator: Some(probe.accelerator),
                    note: probe.note,
                    fault: None,
                    network,
                },
                Err(error) => DriverView {
                    name,
                    usable: false,
                    version: None,
                    arch: None,
                    accelerator: None,
                    note: None,
                    fault: Some(self.fault(error)),
                    network,
                },
            });
        }
        self.host.update(|view| view.drivers = views);
        self.inspect().await;
        self.host.update(|view| view.observed = true);
    }

    /// A new inspection of the host.
    pub async fn inspect(&self) -> HostView {
        self.host.inspect_since(clock::monotonic(), TWO_LISTS_TIMEOUT).await
    }

    /// Logs changes only: a broken driver is probed every few seconds while vms wait for it. The accelerator is
    /// logged at the start and when it changes.
    fn say_what_is_new(&self, name: &str, probed: &Result<DriverProbe, DriverError>) {
        let board = self.host.last();
        let known = board.drivers.iter().find(|d| d.name == name);
        let fault = known.and_then(|d| d.fault.as_ref());
        if let Ok(probe) = probed {
            let is_known =
                known.is_some_and(|d| d.accelerator.as_ref() == Some(&probe.accelerator) && d.note == probe.note);
            if !is_known {
                tracing::info!(driver = name, version = probe.version, "{}", probe.sentence());
            }
        }
        match (probed, fault) {
            (Err(error), Some(fault)) if fault.detail == error.summary => {}
            (Err(error), _) => {
                let tail = error.tail.as_deref().unwrap_or_default();
                tracing::warn!(driver = name, error = %error, tail, "the driver is not usable");
            }
            (Ok(_), Some(_)) => tracing::info!(driver = name, "the driver is usable again"),
            (Ok(_), None) => {}
        }
    }

    /// The host's operating system refused to start this vm's guest because of the number of running guests.
    pub async fn limit_met(&self, vm: &Vm, fault: Fault) {
        let Some(&ResolvedSpec { os, .. }) = vm.spec.resolved() else { return };
        let running = self.inspect().await.running_beside(os, vm.id());
        self.host.update(|view| {
            view.refused(os, running, fault, self.limit_pause, LONGEST_LIMIT_PAUSE);
        });
        if let Some(c) = self.host.last().ceilings.iter().find(|c| c.os == os) {
            tracing::warn!(
                os = os.as_str(), running, slots = self.host.capacity().slots(os), since = %c.fault.at, refusals = c.refusals,
                detail = %c.fault.detail, "the host's operating system refuses to start guests although slots are free"
            );
        }
    }

    /// The guest of this vm was reached.
    pub async fn limit_passed(&self, vm: &Vm) {
        let Some(&ResolvedSpec { os, .. }) = vm.spec.resolved() else { return };
        if !self.host.last().ceilings.iter().any(|c| c.os == os) {
            return;
        }
        let running = self.inspect().await.running_beside(os, vm.id()) + 1;
        if let Some(lifted) = self.host.update(|view| view.admitted(os, running)) {
            tracing::info!(os = os.as_str(), running, since = %lifted.fault.at, "a guest above the ceiling was started; the ceiling is removed");
        }
    }

    /// The host refused the step of this vm for a reason other than the number of guests.
    pub fn step_refused(&self, vm: &Vm, fault: Fault) {
        let Some(ResolvedSpec { driver, .. }) = vm.spec.resolved() else { return };
        let step = match vm.state {
            State::Cloning => State::Cloning,
            // Its guest was started and is not reached yet.
            State::Booting | State::Configuring => State::Booting,
            // It does not wait for the host.
            State::Queued
            | State::Running
            | State::Draining
            | State::Kept
            | State::Stopping
            | State::Deleting
            | State::Deleted => {
                return;
            }
        };
        self.host.update(|view| view.refused_step(driver, step, fault));
    }

    /// The host accepted this step of the vm.
    pub fn step_accepted(&self, vm: &Vm, step: State) {
        let Some(ResolvedSpec { driver, .. }) = vm.spec.resolved() else { return };
        if self.host.last().refusals.is_empty() {
            return;
        }
        for ended in self.host.update(|view| view.accepted_step(driver, step)) {
            tracing::info!(driver, step = %step, code = %ended.fault.code, since = %ended.fault.at, "the host accepts vms again");
        }
    }

    fn fault(&self, error: DriverError) -> Fault {
        Fault { code: error.code, detail: error.summary, at: self.clock.now() }
    }
}
