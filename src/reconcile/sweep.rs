//! Compares instances with rows: destroys instances that have Mayfly's prefix but belong to no live vm. Foreign
//! instances are never touched.

use std::{sync::Arc, time::Duration};

use super::host::HostObserver;
use crate::{
    domain::{InstanceName, difference::difference},
    drivers::registry::DriverRegistry,
    parts::Parts,
    store::{Reader, StoreError},
};

/// Interval of inspections while one of the host's drivers does not work.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct Sweep {
    reader: Reader,
    drivers: Arc<DriverRegistry>,
    host: HostObserver,
    every: Duration,
}

impl Sweep {
    pub fn new(parts: &Parts, host: HostObserver, every: Duration) -> Self {
        let Parts { reader, drivers, .. } = parts.clone();
        Self { reader, drivers, host, every }
    }

    pub async fn sweep_forever(self) {
        loop {
            self.sweep().await;
            // Short, because an administrator who repairs a driver watches `GET /host` for the result.
            let broken = self.host.last().drivers.iter().any(|d| !d.usable);
            let wait = self.every;
            tokio::time::sleep(if broken { wait.min(LOOK_AGAIN) } else { wait }).await;
            self.host.probe_drivers(false).await;
        }
    }

    async fn sweep(&self) {
        let found = async {
            let before = self.reader.live_vms().await?;
            let view = self.host.inspect().await;
            Ok::<_, StoreError>(difference(&before, &view, &self.reader.live_vms().await?))
        };
        let found = match found.await {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(error = %error, "cannot read the live vms for the sweep");
                return;
            }
        };
        for stray in found.strays {
            let (Some(name), Some(driver)) = (InstanceName::read(&stray.name), self.drivers.get(&stray.driver)) else {
                continue;
            };
            let id = name.vm_id();
            match driver.destroy(&name).await {
                Ok(()) => {
                    tracing::warn!(vm.id = %id, instance = %name, "destroyed a stray instance");
                    metrics::counter!("mayfly_strays_destroyed_total").increment(1);
                }
                Err(error) => {
                    tracing::error!(vm.id = %id, instance = %name, error = %error, "cannot destroy a stray instance");
                }
            }
        }
    }
}
