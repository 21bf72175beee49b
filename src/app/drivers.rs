//! Builds the drivers that the configuration enables.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc};

use super::error::StartError;
use crate::{
    config::{self, Config},
    domain::gateway,
    drivers::{
        cloud_hypervisor::{self, CloudHypervisor},
        fake::{Fake, FakeWorld},
        macosvm::{self, Macosvm},
        qemu::{self, Qemu},
        registry::DriverRegistry,
        tart::{self, NetworkKind, Tart},
    },
    platform::data_dir::DataDir,
};

/// Refuses settings that a driver refuses; makes nothing.
pub(super) fn check(config: &Config, data: &DataDir) -> Result<(), StartError> {
    if config.drivers.tart.enabled {
        let launcher = vec!["mayfly".to_owned()];
        let settings = tart::Settings::of(config.drivers.tart.clone(), config.tart_home(), data.tart(), launcher);
        settings.check().map_err(|error| StartError::Driver { driver: Tart::NAME, cause: error.summary })?;
    }
    if config.drivers.macosvm.enabled {
        let launcher = vec!["mayfly".to_owned()];
        let settings = macosvm::Settings::of(&config.drivers.macosvm, data.macosvm(), launcher);
        settings.check().map_err(|error| StartError::Driver { driver: Macosvm::NAME, cause: error.summary })?;
    }
    Ok(())
}

pub(super) fn registry(config: &Config, data: &DataDir, own_path: &Path) -> Result<DriverRegistry, StartError> {
    let mut registry = DriverRegistry::default();
    let qemu = &config.drivers.qemu;
    if qemu.enabled {
        let settings = qemu::Settings {
            count_foreign: config.slots.count_foreign,
            ..qemu::Settings::of(qemu, data.qemu_instances(), data.qemu_probe(), own_path)
        };
        let driver =
            Qemu::new(settings).map_err(|error| StartError::Driver { driver: Qemu::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    let cloud_hypervisor = &config.drivers.cloud_hypervisor;
    if cloud_hypervisor.enabled {
        let settings = cloud_hypervisor::Settings {
            count_foreign: config.slots.count_foreign,
            ..cloud_hypervisor::Settings::of(cloud_hypervisor, data.cloud_hypervisor_instances(), own_path)
        };
        let driver = CloudHypervisor::new(settings)
            .map_err(|error| StartError::Driver { driver: CloudHypervisor::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.tart.enabled {
        warn_of_entries_without_effect(config);
        let launcher = vec![own_path.display().to_string(), "detach".to_owned(), "--".to_owned()];
        let settings = tart::Settings::of(config.drivers.tart.clone(), config.tart_home(), data.tart(), launcher);
        let driver =
            Tart::new(settings).map_err(|error| StartError::Driver { driver: Tart::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.macosvm.enabled {
        let launcher = vec![own_path.display().to_string(), "detach".to_owned(), "--".to_owned()];
        let settings = macosvm::Settings {
            count_foreign: config.slots.count_foreign,
            ..macosvm::Settings::of(&config.drivers.macosvm, data.macosvm(), launcher)
        };
        let driver = Macosvm::new(settings)
            .map_err(|error| StartError::Driver { driver: Macosvm::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.fake.enabled {
        tracing::warn!("the fake driver is enabled: its vms are not real");
        registry.add(Arc::new(Fake::new(FakeWorld::new())));
    }
    Ok(registry)
}

/// Guests would otherwise miss a destination without a hint.
fn warn_of_entries_without_effect(config: &Config) {
    if config.drivers.tart.network != NetworkKind::Softnet {
        return;
    }
    for allowed in config.network.allow.iter().filter(|allowed| tart::expressible(allowed).is_none()) {
        tracing::warn!(
            %allowed,
            "softnet cannot express this entry of network.allow, so guests of Tart do not reach it: softnet takes IPv4 networks \
             without a port"
        );
    }
}

/// The address of the guest API for each driver's guests, unless the configuration sets one for all drivers.
pub(super) fn guest_urls(config: &Config) -> BTreeMap<String, String> {
    let port = config.guest_listen().map_or(config::GUEST_PORT, |address| address.port());
    let tart = SocketAddr::new(config.drivers.tart.gateway, port);
    let macosvm = SocketAddr::new(config.drivers.macosvm.gateway, port);
    let behind_gateways = [Qemu::NAME, CloudHypervisor::NAME].map(|driver| (driver, gateway::GUEST_API.to_string()));
    let direct = [(Tart::NAME, tart), (Macosvm::NAME, macosvm), (Fake::NAME, tart)];
    behind_gateways
        .into_iter()
        .chain(direct.map(|(driver, address)| (driver, address.to_string())))
        .map(|(driver, address)| {
            let url = config.guest.advertise_url.clone().unwrap_or_else(|| format!("http://{address}"));
            (driver.to_owned(), url)
        })
        .collect()
}
