//! Looking at the host: which drivers work, and what runs.

use std::time::Duration;

use super::Reconciler;
use crate::{
    domain::{
        Fault, InstanceName, Spec, Vm,
        host::{DriverView, HostView, Instance},
    },
    drivers::{DriverError, Probe},
};

/// A hypervisor that does not answer within this does not answer.
const LIST_WITHIN: Duration = Duration::from_secs(15);
/// While the system refuses guests, one vm finds out this often whether it still does.
const LONGEST_LIMIT_PAUSE: Duration = Duration::from_secs(60);

impl Reconciler {
    /// Probes every driver. Slow the first time: a probe may boot a guest to see whether an accelerator works.
    pub(super) async fn look_at_drivers(&self, fresh: bool) {
        let mut views = Vec::new();
        for (name, driver) in self.drivers.iter() {
            let name = name.to_owned();
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
                },
                Err(error) => DriverView {
                    name,
                    usable: false,
                    version: None,
                    arch: None,
                    accelerator: None,
                    note: None,
                    fault: Some(self.fault(error)),
                },
            });
        }
        self.board.send_modify(|view| view.drivers = views);
        self.look_at_instances().await;
    }

    /// A driver that does not work is asked again every few seconds while vms wait for it: what is known is not said again.
    fn say_what_is_new(&self, name: &str, probed: &Result<Probe, DriverError>) {
        let board = self.board.borrow();
        let fault = board.drivers.iter().find(|d| d.name == name).and_then(|d| d.fault.as_ref());
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

    /// Lists what runs. A driver that does not answer keeps what it said last: forgetting foreign instances would overbook the host.
    pub(super) async fn look_at_instances(&self) -> HostView {
        let before = self.board.borrow().clone();
        let mut instances = Vec::new();
        let mut drivers = before.drivers.clone();
        for view in &mut drivers {
            let Some(driver) = self.drivers.get(&view.name) else { continue };
            let listed = match tokio::time::timeout(LIST_WITHIN, driver.list()).await {
                Ok(listed) => listed,
                Err(_) => Err(DriverError::new(
                    crate::drivers::ErrorKind::Host,
                    crate::domain::Code::HostUnavailable,
                    format!("{} did not list its instances within {} s", view.name, LIST_WITHIN.as_secs()),
                )),
            };
            match listed {
                Ok(listed) => instances.extend(
                    listed
                        .into_iter()
                        .map(|l| Instance {
                            driver: view.name.clone(),
                            vm_id: if l.ours { InstanceName::parse(&l.name) } else { None },
                            name: l.name,
                            running: l.running,
                            os: l.os,
                            cpus: l.cpus,
                            memory_mib: l.memory_mib,
                        })
                        .filter(|i| i.vm_id.is_some() || self.settings.count_foreign),
                ),
                Err(error) => {
                    instances.extend(before.instances.iter().filter(|i| i.driver == view.name).cloned());
                    tracing::warn!(driver = %view.name, error = %error, "instances could not be listed");
                    if view.usable {
                        view.usable = false;
                        view.fault = Some(self.fault(error));
                    }
                }
            }
        }
        self.board.send_modify(|view| {
            view.drivers = drivers;
            view.instances = instances;
            view.observed_at = self.clock.now();
            view.observed = true;
        });
        self.board.borrow().clone()
    }

    /// The system refused to run this vm's guest because so many run already, it says.
    pub(super) async fn limit_met(&self, vm: &Vm, fault: Fault) {
        let Some(&Spec { os, .. }) = vm.draft.spec() else { return };
        let running = self.look_at_instances().await.running_beside(os, vm.id());
        self.board.send_modify(|view| {
            view.refused(os, running, fault, self.settings.retry_backoff, LONGEST_LIMIT_PAUSE);
        });
        if let Some(c) = self.board.borrow().ceilings.iter().find(|c| c.os == os) {
            tracing::warn!(
                os = os.as_str(), running, slots = self.settings.capacity.slots(os), since = %c.fault.at, refusals = c.refusals,
                detail = %c.fault.detail, "the system refuses guests although slots are free"
            );
        }
    }

    /// This vm's guest runs.
    pub(super) async fn limit_passed(&self, vm: &Vm) {
        let Some(&Spec { os, .. }) = vm.draft.spec() else { return };
        if !self.board.borrow().ceilings.iter().any(|c| c.os == os) {
            return;
        }
        let running = self.look_at_instances().await.running_beside(os, vm.id()) + 1;
        self.board.send_if_modified(|view| match view.admitted(os, running) {
            Some(lifted) => {
                tracing::info!(os = os.as_str(), running, since = %lifted.fault.at, "the system runs as many guests as there are slots again");
                true
            }
            None => false,
        });
    }

    fn fault(&self, error: DriverError) -> Fault {
        Fault { code: error.code, detail: error.summary, at: self.clock.now() }
    }
}
