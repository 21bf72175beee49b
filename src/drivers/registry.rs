//! Drivers by name. Filled once at start, from the configuration.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::{Driver, DriverProbe, Result};
use crate::domain::NetworkSupport;

#[derive(Clone, Default)]
pub struct DriverRegistry {
    drivers: BTreeMap<&'static str, Arc<dyn Driver>>,
    /// Probes whose results were not asked for yet.
    begun: Arc<Mutex<BTreeMap<&'static str, JoinHandle<Result<DriverProbe>>>>>,
}

/// The result of one driver's probe.
pub struct Probed<'a> {
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

    /// Begins the first probe of every driver, without waiting.
    pub fn begin_probes(&self) {
        let begun = self.drivers.iter().map(|(name, driver)| {
            let driver = driver.clone();
            (*name, tokio::spawn(async move { driver.probe(false).await }))
        });
        self.begun.lock().extend(begun);
    }

    /// Probes every driver, all at once. The first call returns the results of the probes that were begun, unless it asks
    /// for fresh ones.
    pub async fn probe(&self, fresh: bool) -> Vec<Probed<'_>> {
        let mut begun = std::mem::take(&mut *self.begun.lock());
        let probes = self.drivers.iter().map(|(name, driver)| {
            let begun = begun.remove(name).filter(|_| !fresh);
            async move {
                let probe = match begun {
                    // It panicked: asking again gives the same, or a result.
                    Some(task) => match task.await {
                        Ok(probe) => probe,
                        Err(_) => driver.probe(false).await,
                    },
                    None => driver.probe(fresh).await,
                };
                Probed { name, driver: &**driver, probe }
            }
        });
        join_all(probes).await
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::drivers::fake::{Fake, FakeWorld, Verb};

    #[tokio::test]
    async fn a_probe_that_was_begun_is_the_result_of_the_first_call() {
        let world = FakeWorld::new();
        let registry = DriverRegistry::default().with(Arc::new(Fake::new(world.clone())));
        let usable = |probes: Vec<Probed<'_>>| probes.iter().filter(|probed| probed.probe.is_ok()).count();
        registry.begin_probes();
        assert_eq!(usable(registry.probe(false).await), 1);
        assert_eq!(world.calls(Verb::Probe), 1);
        assert_eq!(usable(registry.probe(false).await), 1);
        assert_eq!(world.calls(Verb::Probe), 2);
    }

    #[tokio::test]
    async fn a_fresh_probe_does_not_use_one_that_was_begun() {
        let world = FakeWorld::new();
        let registry = DriverRegistry::default().with(Arc::new(Fake::new(world.clone())));
        registry.begin_probes();
        while world.calls(Verb::Probe) == 0 {
            tokio::task::yield_now().await;
        }
        registry.probe(true).await;
        assert_eq!(world.calls(Verb::Probe), 2);
    }
}
