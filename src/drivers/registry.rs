//! Drivers by name. Filled once at start, from the configuration.

use std::{collections::BTreeMap, sync::Arc};

use super::Driver;
use crate::domain::NetworkSupport;

#[derive(Clone, Default)]
pub struct DriverRegistry {
    drivers: BTreeMap<&'static str, Arc<dyn Driver>>,
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
