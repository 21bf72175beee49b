//! Settings of the Tart driver.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use super::section::{NetworkKind, Resolver, TartSection};
use crate::{
    domain::{Arch, Code, NetworkSupport, tart_config::Display},
    drivers::{DriverError, ErrorKind, Result},
};

/// How guests reach the network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Apple's NAT.
    #[default]
    Nat,
    /// Apple's NAT behind Tart's packet filter, a separate program that root has to set up once. Networks in CIDR
    /// notation.
    Softnet { allow: Vec<String>, block: Vec<String> },
    /// Interfaces of the host, by identifier or display name.
    Bridged { interfaces: Vec<String> },
}

#[derive(Clone, Debug)]
pub struct Settings {
    /// `tart` on `PATH` if absent. It is started in place, because its bundle has the entitlement for bridged
    /// networks.
    pub binary: Option<PathBuf>,
    /// Tart's directory of VMs, absolute.
    pub tart_home: PathBuf,
    /// Directory for the output of each `tart run`, absolute and private. A subdirectory marks the VM of that name as
    /// this Mayfly's.
    pub run_dir: PathBuf,
    /// The lease file of the host's DHCP server.
    pub lease_file: PathBuf,
    pub arp: PathBuf,
    pub sw_vers: PathBuf,
    /// The guests' SSH port.
    pub ssh_port: u16,
    /// Program and arguments that execute the following program in a new session, with the same process id.
    pub launcher: Vec<String>,
    pub resolver: Resolver,
    /// The gateway whose network is scanned for guests that are not found otherwise. `None`: there is no scan.
    pub scan: Option<Ipv4Addr>,
    pub network: Network,
    /// Directories of the host for guests, each `[NAME:]PATH[:OPTIONS]` as in `tart run --dir`.
    pub dirs: Vec<String>,
    /// Tag of the Rosetta share; Linux guests only.
    pub rosetta: Option<String>,
    /// Nested virtualisation: Linux guests on an M3 or newer, macOS 15 or newer.
    pub nested: bool,
    /// Start macOS guests so that they can be suspended. They then have no audio and no entropy device.
    pub suspendable: bool,
    /// How the host caches the root disk, as in `tart run --root-disk-opts`. A throw-away disk need not survive a
    /// power failure, so nothing is flushed. Empty: Tart's default.
    pub root_disk_opts: String,
    /// The guests' screen, for example `1920x1080`; the template's if absent.
    pub display: Option<String>,
    /// Copy a template's disk completely if it is on another volume than Tart's VMs. Otherwise that is an error,
    /// because such a copy takes minutes and the whole size of the disk.
    pub copy_across_volumes: bool,
    /// Hosts before macOS 14 give no sign that a guest started. There, a `tart run` that has lived this long counts
    /// as started.
    pub settle: Duration,
    /// How long the lease file or the ARP table may lack a guest before the guest agent is asked.
    pub agent_after: Duration,
    /// Architecture of guests; this host's if absent.
    pub arch: Option<Arch>,
}

impl TartSection {
    fn guest_network(&self) -> Network {
        match self.network {
            NetworkKind::Nat => Network::Nat,
            NetworkKind::Softnet => {
                Network::Softnet { allow: self.softnet_allow.clone(), block: self.softnet_block.clone() }
            }
            NetworkKind::Bridged => Network::Bridged { interfaces: self.bridged_interfaces.clone() },
        }
    }

    /// The network modes that can be enforced with these settings.
    pub fn network_support(&self) -> NetworkSupport {
        self.guest_network().support()
    }
}

impl Settings {
    /// With the defaults of the section.
    pub fn new(tart_home: impl Into<PathBuf>, run_dir: impl Into<PathBuf>, launcher: Vec<String>) -> Self {
        Self::of(TartSection::default(), tart_home, run_dir, launcher)
    }

    pub fn of(
        section: TartSection,
        tart_home: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        launcher: Vec<String>,
    ) -> Self {
        Self {
            network: section.guest_network(),
            binary: section.binary,
            tart_home: tart_home.into(),
            run_dir: run_dir.into(),
            lease_file: section.lease_file,
            arp: "/usr/sbin/arp".into(),
            sw_vers: "/usr/bin/sw_vers".into(),
            ssh_port: section.ssh_port,
            launcher,
            resolver: section.resolver,
            scan: match section.gateway {
                IpAddr::V4(gateway) if section.nat_scan => Some(gateway),
                IpAddr::V4(_) | IpAddr::V6(_) => None,
            },
            dirs: section.dirs,
            rosetta: section.rosetta,
            nested: section.nested,
            suspendable: section.suspendable,
            root_disk_opts: section.root_disk_opts,
            display: section.display,
            copy_across_volumes: section.copy_across_volumes,
            settle: Duration::from_secs(5),
            agent_after: Duration::from_secs(20),
            arch: section.arch,
        }
    }

    /// Refuses settings that Tart would refuse later, for every vm.
    pub fn check(&self) -> Result<()> {
        let refuse = |summary: String| Err(DriverError::new(ErrorKind::Host, Code::HostUnavailable, summary));
        for (what, dir) in [("Tart's home", &self.tart_home), ("the directory of runs", &self.run_dir)] {
            if !dir.is_absolute() || dir.to_str().is_none() {
                return refuse(format!("{what}, {}, is not an absolute path in UTF-8", dir.display()));
            }
        }
        if self.launcher.is_empty() {
            return refuse("there is no program that starts Tart in a session of its own".to_owned());
        }
        if let Some(display) = &self.display
            && Display::parse(display).is_none()
        {
            return refuse(format!("the display {display:?} is not of the form 1920x1080, 1920x1080pt or 1920x1080px"));
        }
        if let Network::Bridged { interfaces } = &self.network
            && interfaces.is_empty()
        {
            return refuse("a bridged network needs an interface".to_owned());
        }
        let mut shares: Vec<Share<'_>> = Vec::new();
        for dir in &self.dirs {
            let Some(share) = Share::parse(dir) else {
                return refuse(format!("the shared directory {dir:?} is not of the form [NAME:]/PATH[:ro,tag=TAG]"));
            };
            let clash = |other: &&Share<'_>| {
                other.tag == share.tag && (other.name.is_none() || share.name.is_none() || other.name == share.name)
            };
            // If two have the same name, Tart silently drops the first.
            if shares.iter().find(clash).is_some() {
                return refuse(format!(
                    "of several shared directories with one tag, each needs a name of its own: {dir:?}"
                ));
            }
            shares.push(share);
        }
        Ok(())
    }
}

/// Validates a shared directory as far as necessary before Tart gets it.
#[derive(Debug, PartialEq, Eq)]
struct Share<'a> {
    name: Option<&'a str>,
    tag: Option<&'a str>,
}

impl<'a> Share<'a> {
    /// Only absolute paths: Tart would resolve a relative one in its own directory.
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (name, options) = match parts.as_slice() {
            [path] if path.starts_with('/') => (None, ""),
            [path, options] if path.starts_with('/') && !options.starts_with('/') => (None, *options),
            [name, path] if path.starts_with('/') => (Some(*name), ""),
            [name, path, options] if path.starts_with('/') => (Some(*name), *options),
            _ => return None,
        };
        let mut tag = None;
        for option in options.split(',').filter(|o| !o.is_empty()) {
            match option.strip_prefix("tag=") {
                Some(name) => tag = Some(name).filter(|t| !t.is_empty()),
                None if option == "ro" => {}
                None => return None,
            }
        }
        name.is_none_or(|name| !name.is_empty() && !name.contains('/')).then_some(Share { name, tag })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings::new("/home", "/runs", vec!["/mayfly".to_owned(), "detach".to_owned()])
    }

    #[test]
    fn what_tart_cannot_express_is_refused_at_once() {
        settings().check().unwrap();
        type Change = fn(&mut Settings);
        let refused: [(&str, Change); 10] = [
            ("not an absolute path", |s| s.tart_home = "tart".into()),
            ("not an absolute path", |s| s.run_dir = "runs".into()),
            ("no program", |s| s.launcher.clear()),
            ("\"big\"", |s| s.display = Some("big".to_owned())),
            ("needs an interface", |s| s.network = Network::Bridged { interfaces: vec![] }),
            ("not of the form", |s| s.dirs = vec!["src".to_owned()]),
            ("not of the form", |s| s.dirs = vec!["/a:/b:c:d".to_owned()]),
            ("not of the form", |s| s.dirs = vec!["/a:rw".to_owned()]),
            ("a name of its own", |s| s.dirs = vec!["x:/a".to_owned(), "/b".to_owned()]),
            ("a name of its own", |s| s.dirs = vec!["x:/a".to_owned(), "x:/b:ro".to_owned()]),
        ];
        for (says, change) in refused {
            let mut settings = settings();
            change(&mut settings);
            let error = settings.check().unwrap_err();
            assert!(error.summary.contains(says), "{error}");
        }
        let mut good = settings();
        good.dirs = ["x:/a b", "y:/b:ro", "/c:ro,tag=t"].map(str::to_owned).into();
        good.check().unwrap();
    }
}
