//! Settings of the macosvm driver.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use super::section::{IdentityChoice, MacosvmNetworkKind, MacosvmSection};
use crate::{
    domain::{Code, InstanceName, NetworkMode, NetworkSupport, tart_config::Display},
    drivers::{DriverError, ErrorKind, Result},
};

/// Leases usually appear within this time.
const SCAN_AFTER: Duration = Duration::from_secs(20);
const NO_FILTER: &str = "macosvm connects guests without a filter: use the driver tart with softnet for this mode";

/// How guests reach the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MacosvmNetwork {
    /// Apple's NAT.
    #[default]
    Nat,
    /// An interface of the host.
    Bridged { interface: String },
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// `macosvm` on `PATH` if absent.
    pub binary: Option<PathBuf>,
    /// Directory of the instances, absolute and private.
    pub instances_dir: PathBuf,
    /// The lease file of the host's DHCP server.
    pub lease_file: PathBuf,
    pub arp: PathBuf,
    /// The gateway whose network is scanned for guests without a lease. `None`: there is no scan.
    pub scan: Option<Ipv4Addr>,
    /// How long after its start a guest is searched for by a scan.
    pub scan_after: Duration,
    /// The guests' SSH port.
    pub ssh_port: u16,
    /// Program and arguments that execute the following program in a new session, with the same process id.
    pub launcher: Vec<String>,
    pub network: MacosvmNetwork,
    pub identity: IdentityChoice,
    /// The guests' screen, for example `1920x1080`; the template's if absent.
    pub display: Option<String>,
    /// Copy a template's disk completely if it cannot be cloned. Otherwise that is an error, because such a copy takes
    /// minutes and the whole size of the disk.
    pub copy_without_clones: bool,
    /// List foreign macosvm processes.
    pub count_foreign: bool,
}

impl MacosvmSection {
    fn guest_network(&self) -> MacosvmNetwork {
        match self.network {
            MacosvmNetworkKind::Nat => MacosvmNetwork::Nat,
            MacosvmNetworkKind::Bridged => {
                MacosvmNetwork::Bridged { interface: self.bridged_interface.clone().unwrap_or_default() }
            }
        }
    }
}

/// The network modes that can be enforced: none but the open one.
pub(super) fn network_support() -> NetworkSupport {
    NetworkSupport::default().without(NetworkMode::Isolated, NO_FILTER).without(NetworkMode::Internet, NO_FILTER)
}

impl Settings {
    /// With the defaults of the section.
    pub fn new(instances_dir: impl Into<PathBuf>, launcher: Vec<String>) -> Self {
        Self::of(&MacosvmSection::default(), instances_dir, launcher)
    }

    pub fn of(section: &MacosvmSection, instances_dir: impl Into<PathBuf>, launcher: Vec<String>) -> Self {
        Self {
            binary: section.binary.clone(),
            instances_dir: instances_dir.into(),
            lease_file: section.lease_file.clone(),
            arp: "/usr/sbin/arp".into(),
            scan: match section.gateway {
                IpAddr::V4(gateway) if section.nat_scan => Some(gateway),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            },
            scan_after: SCAN_AFTER,
            ssh_port: section.ssh_port,
            launcher,
            network: section.guest_network(),
            identity: section.identity,
            display: section.display.clone(),
            copy_without_clones: section.copy_without_clones,
            count_foreign: true,
        }
    }

    /// Refuses settings that macosvm would refuse later, or ignore, for every vm.
    pub fn check(&self) -> Result<()> {
        let refuse = |summary: String| Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary));
        if !self.instances_dir.is_absolute() || self.instances_dir.to_str().is_none() {
            let dir = self.instances_dir.display();
            return refuse(format!("the directory of instances, {dir}, is not an absolute path in UTF-8"));
        }
        if self.launcher.is_empty() {
            return refuse("there is no program that starts macosvm in a session of its own".to_owned());
        }
        if let Some(display) = &self.display
            && Display::parse(display).is_none_or(|display| display.unit.is_some())
        {
            return refuse(format!("the display {display:?} is not of the form 1920x1080"));
        }
        // Without an interface, macosvm takes the first one that it finds.
        if let MacosvmNetwork::Bridged { interface } = &self.network
            && (interface.is_empty() || interface.chars().any(|c| c.is_control() || c.is_whitespace()))
        {
            return refuse(
                "a bridged network needs drivers.macosvm.bridged_interface, an interface such as en0".to_owned(),
            );
        }
        Ok(())
    }

    /// Clones under construction.
    pub fn staging(&self) -> PathBuf {
        self.instances_dir.join("staging")
    }

    /// Where the instance's directory is while it is removed. Not among the stages of its clones.
    pub fn removed(&self, name: &InstanceName) -> PathBuf {
        self.staging().join(format!("removed-{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_macosvm_cannot_express_is_refused_at_once() {
        let settings = || Settings::new("/instances", vec!["/mayfly".to_owned()]);
        settings().check().unwrap();
        type Change = fn(&mut Settings);
        let refused: [(&str, Change); 6] = [
            ("not an absolute path", |s| s.instances_dir = "vms".into()),
            ("no program", |s| s.launcher.clear()),
            ("\"big\"", |s| s.display = Some("big".to_owned())),
            ("1920x1080pt", |s| s.display = Some("1920x1080pt".to_owned())),
            ("bridged_interface", |s| s.network = MacosvmNetwork::Bridged { interface: String::new() }),
            ("bridged_interface", |s| s.network = MacosvmNetwork::Bridged { interface: "en0 en1".to_owned() }),
        ];
        for (says, change) in refused {
            let mut settings = settings();
            change(&mut settings);
            let error = settings.check().unwrap_err();
            assert!(error.summary.contains(says), "{error}");
        }
        let bridged = MacosvmNetwork::Bridged { interface: "en0".to_owned() };
        Settings { network: bridged, display: Some("1024x768".to_owned()), ..settings() }.check().unwrap();
    }
}
