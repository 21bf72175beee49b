//! The drivers that the configuration enables.

use std::{collections::BTreeMap, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use super::error::StartError;
use crate::{
    config::{self, Accelerator, Config, GuestArch, TartNetwork, TartResolver},
    domain::Arch,
    drivers::{
        fake::{Fake, FakeWorld},
        qemu::{self, AcceleratorChoice, Qemu},
        registry::Registry,
        tart::{self, Tart},
    },
    platform::data_dir::DataDir,
};

pub(super) fn registry(config: &Config, data: &DataDir, own_path: &Path) -> Result<Registry, StartError> {
    let mut registry = Registry::default();
    let qemu = &config.drivers.qemu;
    if qemu.enabled {
        let driver = Qemu::new(qemu::Settings {
            binary: qemu.binary.clone(),
            qemu_img: qemu.qemu_img.clone(),
            accelerator: match qemu.accelerator {
                Accelerator::Auto => AcceleratorChoice::Auto,
                Accelerator::Kvm => AcceleratorChoice::Kvm,
                Accelerator::Hvf => AcceleratorChoice::Hvf,
                Accelerator::Tcg => AcceleratorChoice::Tcg,
            },
            first_guest: Duration::from_secs(u64::from(qemu.first_guest_seconds)),
            count_foreign: config.slots.count_foreign,
            ..qemu::Settings::new(data.qemu_instances(), data.qemu_probe())
        })
        .map_err(|error| StartError::Driver { driver: Qemu::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.tart.enabled {
        let driver = Tart::new(tart_settings(config, data, own_path))
            .map_err(|error| StartError::Driver { driver: Tart::NAME, cause: error.summary })?;
        registry.add(Arc::new(driver));
    }
    if config.drivers.fake.enabled {
        tracing::warn!("the fake driver is enabled: its vms are not real");
        registry.add(Arc::new(Fake::new(FakeWorld::new())));
    }
    Ok(registry)
}

fn tart_settings(config: &Config, data: &DataDir, own_path: &Path) -> tart::Settings {
    let t = &config.drivers.tart;
    let launcher = vec![own_path.display().to_string(), "detach".to_owned(), "--".to_owned()];
    tart::Settings {
        binary: t.binary.clone(),
        arch: t.arch.map(|arch| match arch {
            GuestArch::Aarch64 => Arch::Aarch64,
            GuestArch::X86_64 => Arch::X86_64,
        }),
        lease_file: t.lease_file.clone(),
        ssh_port: t.ssh_port,
        resolver: match t.resolver {
            TartResolver::Dhcp => tart::Resolver::Dhcp,
            TartResolver::Arp => tart::Resolver::Arp,
            TartResolver::Agent => tart::Resolver::Agent,
        },
        network: match t.network {
            TartNetwork::Nat => tart::Network::Nat,
            TartNetwork::Softnet => {
                tart::Network::Softnet { allow: t.softnet_allow.clone(), block: t.softnet_block.clone() }
            }
            TartNetwork::Bridged => tart::Network::Bridged { interfaces: t.bridged_interfaces.clone() },
        },
        dirs: t.dirs.clone(),
        rosetta: t.rosetta.clone(),
        nested: t.nested,
        suspendable: t.suspendable,
        root_disk_opts: t.root_disk_opts.clone(),
        display: t.display.clone(),
        copy_across_volumes: t.copy_across_volumes,
        ..tart::Settings::new(config.tart_home(), data.tart(), launcher)
    }
}

/// Where each driver's guests find the guest API, unless the configuration names one place for all.
pub(super) fn guest_urls(config: &Config) -> BTreeMap<String, String> {
    let port = config.guest_listen().map_or(config::GUEST_PORT, |address| address.port());
    let tart = SocketAddr::new(config.drivers.tart.gateway, port);
    [
        (Qemu::NAME, qemu::args::GUEST_API_ADDRESS.to_owned()),
        (Tart::NAME, tart.to_string()),
        (Fake::NAME, tart.to_string()),
    ]
    .into_iter()
    .map(|(driver, address)| {
        let url = config.guest.advertise_url.clone().unwrap_or_else(|| format!("http://{address}"));
        (driver.to_owned(), url)
    })
    .collect()
}
