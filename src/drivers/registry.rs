//! Drivers by name. Filled once at start, from the configuration.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::task::AbortOnDropHandle;

use super::{Driver, DriverProbe, Result};
use crate::domain::NetworkSupport;

#[derive(Clone, Default)]
pub struct DriverRegistry {
    drivers: BTreeMap<&'static str, Arc<dyn Driver>>,
    /// The first probes, until their results are asked for. They end with this.
    begun: Arc<Mutex<Option<BegunProbes>>>,
}

type BegunProbes = AbortOnDropHandle<Vec<Result<DriverProbe>>>;

/// The result of one driver's probe.
pub struct ProbedDriver<'a> {
    pub name: &'static str,
    pub driver: &'a dyn Driver,
    pub probe: Result<DriverProbe>,
}

impl DriverRegistry {
    /// Adds a driver under its own name, and replaces one with the same name.
    pub fn add(&mut self, driver: Arc<dyn Driver>) {
        self.drivers.insert(driver.name(), driver);
    }

    pub fn with(mut self, driver: Arc<dyn Driver>) -> Self {
        self.add(driver);
        self
    }

    pub fn get(&self, name: &str) -> Option<&Arc<dyn Driver>> {
        self.drivers.get(name)
    }

    /// Begins the first probes, without waiting for them.
    pub fn begin_probes(&self) {
        let drivers = self.drivers.clone();
        let task = tokio::spawn(async move { probe_each(&drivers, false).await });
        *self.begun.lock() = Some(AbortOnDropHandle::new(task));
    }

    /// Probes the drivers, one after the other: a first probe may compare the times of two trial guests. The first call
    /// returns the results of the probes that were begun, unless it asks for fresh ones.
    pub async fn probe(&self, fresh: bool) -> Vec<ProbedDriver<'_>> {
        let begun = self.begun.lock().take().filter(|_| !fresh);
        let results = match begun {
            Some(task) => match task.await {
                Ok(results) => results,
                // It panicked.
                Err(_) => probe_each(&self.drivers, false).await,
            },
            None => probe_each(&self.drivers, fresh).await,
        };
        let drivers = self.drivers.iter().zip(results);
        drivers.map(|((name, driver), probe)| ProbedDriver { name, driver: &**driver, probe }).collect()
    }

    /// What this driver can enforce. Of a driver that is not enabled nothing is known, so nothing is refused; the modes of
    /// its vms are checked again before they start.
    pub fn network_support(&self, name: &str) -> NetworkSupport {
        self.get(name).map(|driver| driver.capabilities().network).unwrap_or_default()
    }

    /// In the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Arc<dyn Driver>)> {
        self.drivers.iter().map(|(name, driver)| (*name, driver))
    }

    pub fn names(&self) -> Vec<&'static str> {
        self.drivers.keys().copied().collect()
    }
}

async fn probe_each(drivers: &BTreeMap<&'static str, Arc<dyn Driver>>, fresh: bool) -> Vec<Result<DriverProbe>> {
    let mut results = Vec::new();
    for driver in drivers.values() {
        results.push(driver.probe(fresh).await);
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::fake::{Fake, FakeWorld, Verb};

    #[tokio::test]
    async fn a_probe_that_was_begun_is_the_result_of_the_first_call() {
        let world = FakeWorld::new();
        let registry = DriverRegistry::default().with(Arc::new(Fake::new(world.clone())));
        let usable = |probes: Vec<ProbedDriver<'_>>| probes.iter().filter(|probed| probed.probe.is_ok()).count();
        registry.begin_probes();
        world.until(|seen| seen.calls(Verb::Probe) == 1).await;
        assert_eq!(usable(registry.probe(false).await), 1);
        assert_eq!(world.snapshot().calls(Verb::Probe), 1);
        assert_eq!(usable(registry.probe(false).await), 1);
        assert_eq!(world.snapshot().calls(Verb::Probe), 2);
    }

    #[tokio::test]
    async fn a_fresh_probe_does_not_use_one_that_was_begun() {
        let world = FakeWorld::new();
        let registry = DriverRegistry::default().with(Arc::new(Fake::new(world.clone())));
        registry.begin_probes();
        world.until(|seen| seen.calls(Verb::Probe) == 1).await;
        registry.probe(true).await;
        assert_eq!(world.snapshot().calls(Verb::Probe), 2);
    }
}
