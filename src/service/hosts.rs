//! The host as the API shows it, and what is there for new vms.

use std::time::Duration;

use jiff::Timestamp;

use super::Service;
use crate::{
    domain::{
        Code, Error, GuestOs, QueueReason, Result, Spec, State,
        host::{Difference, HostView, Usage, difference},
    },
    platform::clock,
    store::placement::{Demand, HostOffer},
};

pub mod inspector;

pub use inspector::HostInspector;

/// How long a request waits for hypervisors to say what they run.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// What is only shown may be a little old: whoever asks again and again is answered by one look.
const SHOWN_AGE: Duration = Duration::from_secs(1);
/// As above, for metrics.
const MEASURED_AGE: Duration = Duration::from_secs(5);
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

/// The host and what is held of it.
#[derive(Clone, Debug)]
pub struct HostStatus {
    pub view: HostView,
    /// What our own vms hold.
    pub leased: Usage,
    /// What instances hold that Mayfly did not start.
    pub foreign: Usage,
    pub queued: i64,
    /// When this was put together.
    pub now: Timestamp,
}

/// What placing needs to know of a host: `before` was read before it was looked at.
pub fn room(view: &HostView, before: Demand, now: Timestamp) -> HostOffer {
    let able = view.drivers.iter().filter(|d| view.observed && view.can_start(&d.name));
    let running = view.instances.iter().filter(|i| i.running);
    let running = running.filter_map(|i| Some((i.vm_id?, i.os, i.cpus, i.memory_mib)));
    let mut ours: Vec<_> = running.collect();
    // While one starts, a hypervisor may show it twice; and what is leased is what counts of one that has a lease.
    ours.retain(|(id, ..)| !before.leases.iter().any(|lease| lease.vm == *id));
    ours.extend(before.leases.into_iter().map(|lease| (lease.vm, lease.os, lease.cpus, lease.memory_mib)));
    HostOffer {
        capacity: view.capacity,
        ceilings: view.ceilings.iter().map(|c| (c.os, c.now(now))).collect(),
        uncounted: view.uncounted(),
        drivers: able.map(|d| d.name.clone()).collect(),
        foreign: view.foreign(),
        ours,
        queued: Some(before.queued),
    }
}

impl Service {
    pub async fn host_status(&self) -> Result<HostStatus> {
        let view = self.host.look_at_most(SHOWN_AGE, SHOWN_WITHIN).await;
        let queued = self.reader.count_by_state().await?.get(&State::Queued).copied().unwrap_or_default();
        let leased = self.reader.leased().await?;
        Ok(HostStatus { leased, foreign: view.foreign(), view, queued, now: self.clock.now() })
    }

    /// Sets the gauges that are read off the state of things, for whoever collects metrics now.
    pub async fn measure(&self) -> Result<()> {
        let counts = self.reader.count_by_state().await?;
        for state in State::ALL.iter().copied().filter(|s| *s != State::Deleted) {
            metrics::gauge!("mayfly_vms", "state" => state.as_str())
                .set(counts.get(&state).copied().unwrap_or(0) as f64);
        }
        let waiting = self.reader.queue_by_reason().await?;
        for &reason in QueueReason::ALL {
            let n = waiting.get(&reason).copied().unwrap_or(0);
            metrics::gauge!("mayfly_queue_length", "reason" => reason.as_str()).set(n as f64);
        }
        let leased = self.reader.leased().await?;
        let view = self.host.look_at_most(MEASURED_AGE, SHOWN_WITHIN).await;
        let foreign = view.foreign();
        let slots = [
            ("linux", view.capacity.linux_slots, leased.linux, foreign.linux),
            ("macos", view.capacity.macos_slots, leased.macos, foreign.macos),
        ];
        for (os, total, ours, theirs) in slots {
            metrics::gauge!("mayfly_slots", "os" => os).set(total);
            metrics::gauge!("mayfly_slots_leased", "os" => os).set(ours);
            metrics::gauge!("mayfly_slots_foreign", "os" => os).set(theirs);
        }
        for os in [GuestOs::Linux, GuestOs::Macos] {
            let ceiling = view.ceilings.iter().find(|c| c.os == os);
            let age = ceiling.map_or(0.0, |c| self.clock.now().duration_since(c.fault.at).as_secs_f64().max(0.0));
            metrics::gauge!("mayfly_host_limit_fault_age_seconds", "os" => os.as_str()).set(age);
        }
        for driver in &view.drivers {
            let usable = f64::from(u8::from(view.can_start(&driver.name)));
            metrics::gauge!("mayfly_driver_usable", "driver" => driver.name.clone()).set(usable);
        }
        let usable = self.ledger.health().fault().is_none();
        metrics::gauge!("mayfly_database_usable").set(f64::from(u8::from(usable)));
        self.measure_pools().await?;
        self.measure_github();
        Ok(())
    }

    /// What GitHub still allows each of our credentials.
    fn measure_github(&self) {
        let Some(github) = &self.github else { return };
        for budget in github.budgets() {
            let who = budget.credential;
            let until = budget.closed_until.map_or(0, Timestamp::as_second);
            metrics::gauge!("mayfly_github_closed_until_time", "credential" => who.clone()).set(until as f64);
            metrics::counter!("mayfly_github_requests_total", "credential" => who.clone()).absolute(budget.requests);
            metrics::counter!("mayfly_github_not_modified_total", "credential" => who.clone())
                .absolute(budget.not_modified);
            metrics::counter!("mayfly_github_limited_total", "credential" => who.clone()).absolute(budget.limited);
            for resource in budget.resources {
                let labels = [("credential", who.clone()), ("resource", resource.resource)];
                metrics::gauge!("mayfly_github_rate_limit", &labels).set(resource.limit as f64);
                metrics::gauge!("mayfly_github_rate_limit_remaining", &labels).set(resource.remaining as f64);
                metrics::gauge!("mayfly_github_rate_limit_reset_time", &labels)
                    .set(resource.resets_at.as_second() as f64);
            }
        }
    }

    /// The room that there is for a vm which does not wait.
    pub(super) async fn room_now(&self, spec: &Spec, before: Demand) -> Result<HostOffer> {
        let view = self.host.look(clock::monotonic(), ANSWER_WITHIN).await;
        let unavailable = |detail: String| Err(Error::new(Code::HostUnavailable, detail).retry_after(5));
        if !view.observed {
            return unavailable("the host's drivers are still being probed".to_owned());
        }
        match view.driver(&spec.driver) {
            None => return unavailable(format!("the driver {} is not enabled in this service", spec.driver)),
            Some(driver) if !driver.usable => {
                let why = driver.fault.as_ref().map(|fault| format!(": {}", fault.detail)).unwrap_or_default();
                return unavailable(format!("the driver {} cannot run guests now{why}", spec.driver));
            }
            Some(_) => {}
        }
        if let Some(fault) = view.unlisted(spec.os, &spec.driver) {
            return unavailable(format!("it is not known whether a slot is free: {}", fault.detail));
        }
        Ok(room(&view, before, self.clock.now()))
    }

    /// Rows against instances, without acting on it.
    pub async fn difference(&self) -> Result<Difference> {
        let before = self.reader.live_vms().await?;
        let view = self.host.look(clock::monotonic(), ANSWER_WITHIN).await;
        let after = self.reader.live_vms().await?;
        let runners = self.reader.ghosts().await?.iter().map(|(row, _)| row.ghost()).collect();
        Ok(Difference { runners, ..difference(&before, &view, &after) })
    }

    /// When what runs on the host was listed last.
    pub fn host_observed_at(&self) -> Timestamp {
        self.host.last().observed_at
    }

    /// Whether new vms can be served: a write reached the disk, the database answers and the host was looked at.
    pub async fn ready(&self) -> Result<()> {
        self.ledger.prove_write().await?;
        self.reader.ping().await?;
        if self.host.last().observed {
            return Ok(());
        }
        Err(Error::new(Code::HostUnavailable, "the host's drivers are still being probed").retry_after(2))
    }
}
