//! Gauges that are computed from the current state when metrics are collected.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::{
    domain::{GuestOs, Pool, QueueReason, Result, State},
    drivers::inspector::HostInspector,
    parts::Parts,
    platform::Clock,
    sources::Sources,
    store::{Ledger, Reader, pools::PoolVms},
};

/// Measurements may have this age, so that frequent collectors do not cause one each.
const MEASURED_AGE: Duration = Duration::from_secs(5);
const SHOWN_WITHIN: Duration = Duration::from_secs(2);

#[derive(Clone)]
pub struct Metrics {
    ledger: Ledger,
    reader: Reader,
    host: HostInspector,
    sources: Sources,
    clock: Clock,
    configured: Arc<[Pool]>,
    /// Pools whose gauges were set.
    measured: Arc<Mutex<BTreeSet<String>>>,
}

impl Metrics {
    pub fn new(parts: &Parts, configured: Arc<[Pool]>) -> Self {
        let Parts { ledger, reader, host, sources, clock, .. } = parts.clone();
        Self { ledger, reader, host, sources, clock, configured, measured: Arc::default() }
    }

    /// Sets the gauges that are computed from the current state. Called when metrics are collected.
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
        let view = self.host.inspect_if_older_than(MEASURED_AGE, SHOWN_WITHIN).await;
        let foreign = view.foreign();
        let slots = [
            ("linux", view.slots(GuestOs::Linux), leased.linux, foreign.linux),
            ("macos", view.slots(GuestOs::Macos), leased.macos, foreign.macos),
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

    /// Rate limits of each GitHub credential.
    fn measure_github(&self) {
        for (source, budget) in
            self.sources.github_clients().flat_map(|(n, c)| c.budgets().into_iter().map(move |b| (n, b)))
        {
            // Of the only source of earlier versions, without its name.
            let who = match source.is_github() {
                true => budget.credential,
                false => format!("{source}: {}", budget.credential),
            };
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

    /// Sets the gauges of pools. A removed pool shows 0 until the service ends, because a gauge cannot be removed.
    async fn measure_pools(&self) -> Result<()> {
        let vms = self.reader.vms_by_pool().await?;
        let waiting = self.reader.jobs_waiting_by_pool().await?;
        let known = self.reader.known_pools(&self.configured).await?;
        let pools: BTreeMap<String, u32> =
            known.into_values().map(|known| (known.pool.name, known.pool.max_vms)).collect();
        let mut measured = self.measured.lock();
        measured.extend(vms.keys().chain(pools.keys()).cloned());
        for pool in measured.iter() {
            let PoolVms { queued, live } = vms.get(pool).copied().unwrap_or_default();
            for (state, n) in [("queued", queued), ("live", live)] {
                metrics::gauge!("mayfly_pool_vms", "pool" => pool.clone(), "state" => state).set(n);
            }
            let max = pools.get(pool).copied().unwrap_or_default();
            let jobs = waiting.get(pool).copied().unwrap_or_default();
            metrics::gauge!("mayfly_pool_jobs_waiting", "pool" => pool.clone()).set(jobs);
            metrics::gauge!("mayfly_pool_vms_max", "pool" => pool.clone()).set(max);
        }
        Ok(())
    }
}
