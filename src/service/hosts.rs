//! The host as the API shows it, and what is there for new vms.

use jiff::Timestamp;

use super::Service;
use crate::{
    domain::{
        GuestOs, QueueReason, Result, State,
        host::{Difference, Held, HostView, difference},
    },
    store::placement::Room,
};

/// The host and what is held of it.
#[derive(Clone, Debug)]
pub struct HostStatus {
    pub view: HostView,
    /// What our own vms hold.
    pub leased: Held,
    /// What instances hold that Mayfly did not start.
    pub foreign: Held,
    pub queued: i64,
    /// When this was put together.
    pub now: Timestamp,
}

/// What placing needs to know of a host.
pub fn room(view: &HostView, now: Timestamp) -> Room {
    let usable = view.drivers.iter().filter(|d| view.observed && d.usable);
    Room {
        capacity: view.capacity,
        ceilings: view.ceilings.iter().map(|c| (c.os, c.now(now))).collect(),
        drivers: usable.map(|d| d.name.clone()).collect(),
        foreign: view.foreign(),
        ours: view
            .instances
            .iter()
            .filter(|i| i.running)
            .filter_map(|i| Some((i.vm_id?, i.os, i.cpus, i.memory_mib)))
            .collect(),
    }
}

impl Service {
    pub async fn host_status(&self) -> Result<HostStatus> {
        let view = self.host.borrow().clone();
        let queued = self.reader.count_by_state().await?.get(&State::Queued).copied().unwrap_or_default();
        let leased = self.reader.leased().await?;
        Ok(HostStatus { leased, foreign: view.foreign(), view, queued, now: self.clock.now() })
    }

    /// Sets the gauges that are read off the state of things, for whoever collects metrics now.
    pub async fn measure(&self) -> Result<()> {
        let counts = self.reader.count_by_state().await?;
        for state in State::ALL.into_iter().filter(|s| *s != State::Deleted) {
            metrics::gauge!("mayfly_vms", "state" => state.as_str())
                .set(counts.get(&state).copied().unwrap_or(0) as f64);
        }
        let waiting = self.reader.queue_by_reason().await?;
        for reason in QueueReason::ALL {
            let n = waiting.get(&reason).copied().unwrap_or(0);
            metrics::gauge!("mayfly_queue_length", "reason" => reason.as_str()).set(n as f64);
        }
        let leased = self.reader.leased().await?;
        let view = self.host.borrow().clone();
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
        for driver in view.drivers {
            metrics::gauge!("mayfly_driver_usable", "driver" => driver.name).set(f64::from(u8::from(driver.usable)));
        }
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

    /// Rows against instances, without acting on it.
    pub async fn difference(&self) -> Result<Difference> {
        let instances = self.host.borrow().instances.clone();
        let runners = self.reader.ghosts().await?.iter().map(|(row, _)| row.ghost()).collect();
        Ok(Difference { runners, ..difference(&self.reader.live_vms().await?, &instances) })
    }

    /// Whether new vms can be served: the database answers and the host was looked at.
    pub async fn ready(&self) -> Result<()> {
        self.reader.ping().await?;
        let view = self.host.borrow();
        if view.observed {
            return Ok(());
        }
        Err(crate::domain::Error::new(
            crate::domain::Code::HostUnavailable,
            "the host's drivers are still being probed",
        )
        .retry_after(2))
    }
}
