//! Finds the address of a guest: in the host's tables, or by its agent.

use std::net::Ipv4Addr;

use super::{
    paths::TartPaths,
    section::Resolver,
    settings::{Network, Settings},
};
use crate::{
    domain::{Code, InstanceName, mac::Mac},
    drivers::{
        DriverError, ErrorKind, Result,
        failure::shown,
        guest_address::{GuestLeases, by_arp, by_scan},
        nat_scan::{self, NatScan},
    },
    platform::{clock, process::Command},
};

/// `tart` creates a command of Tart, for a query of the guest agent.
pub async fn find(
    settings: &Settings,
    paths: &TartPaths,
    name: &InstanceName,
    mac: Mac,
    scan: &NatScan,
    tart: impl FnOnce() -> Result<Command>,
) -> Result<Option<Ipv4Addr>> {
    let known = match settings.resolver {
        Resolver::Agent => Ok(None),
        Resolver::Dhcp if !matches!(settings.network, Network::Bridged { .. }) => {
            leases(settings, paths, mac).address()
        }
        Resolver::Dhcp | Resolver::Arp => by_arp(&settings.arp, mac).await,
    };
    let known = match known {
        Ok(None) if agent_is_due(settings, paths) => by_agent(name, tart()?).await,
        // A table that cannot be read says nothing about the guest; the agent may know its address.
        Err(fault) if fault.code == Code::HostUnavailable && paths.control_sock().exists() => {
            by_agent(name, tart()?).await?.map_or(Err(fault), |ip| Ok(Some(ip)))
        }
        known => known,
    };
    match (known, settings.scan) {
        (Ok(None), Some(gateway)) if scan_is_due(settings, paths) => {
            by_scan(scan, (gateway, settings.ssh_port), &settings.arp, mac).await
        }
        (known, _) => known,
    }
}

/// The guest's leases.
pub fn leases<'a>(settings: &'a Settings, paths: &TartPaths, mac: Mac) -> GuestLeases<'a> {
    GuestLeases { file: &settings.lease_file, before: paths.leases_before(), mac }
}

/// A query of the agent starts a program that takes a second to fail, so the tables are used alone at first. The
/// socket is created when the guest starts.
fn agent_is_due(settings: &Settings, paths: &TartPaths) -> bool {
    let Ok(started) = paths.control_sock().metadata().and_then(|socket| socket.modified()) else { return false };
    settings.resolver == Resolver::Agent || clock::age(started) >= settings.agent_after
}

fn scan_is_due(settings: &Settings, paths: &TartPaths) -> bool {
    let Ok(started) = paths.control_sock().metadata().and_then(|socket| socket.modified()) else { return false };
    !matches!(settings.network, Network::Bridged { .. }) && nat_scan::is_due(clock::age(started), settings.agent_after)
}

async fn by_agent(name: &InstanceName, tart: Command) -> Result<Option<Ipv4Addr>> {
    let output = match tart.args(["ip", name.as_str(), "--resolver=agent"]).run().await {
        Ok(output) => output,
        Err(error) => {
            tracing::debug!(%error, instance = %name, "the guest agent returned no address");
            return Ok(None);
        }
    };
    if !output.status.success() {
        tracing::debug!(instance = %name, error = output.stderr_tail, "the guest agent returned no address");
        return Ok(None);
    }
    match printed(&output.stdout_text()) {
        Some(ip) => Ok(Some(ip)),
        None => {
            let summary = format!("expected `tart ip` to print an address; found: {}", shown(&output.stdout));
            Err(DriverError::new(ErrorKind::Retry, Code::GuestNotReady, summary))
        }
    }
}

/// The address in what `tart ip` printed. Newer versions print warnings, too, each on a line of its own.
fn printed(text: &str) -> Option<Ipv4Addr> {
    let mut found = text.lines().filter_map(|line| line.trim().parse().ok());
    let first = found.next()?;
    found.all(|other| other == first).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two guests answer at once: each is found where the ARP table has it, and only if it answers there.
    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_scan_finds_a_guest_by_its_own_ethernet_address() {
        use std::{os::unix::fs::PermissionsExt as _, time::Duration};

        use tokio::{io::AsyncWriteExt as _, net::TcpListener};

        let dir = tempfile::tempdir().unwrap();
        let at = |host| Ipv4Addr::new(127, 64, 8, host);
        let first = TcpListener::bind((at(2), 0)).await.unwrap();
        let ssh_port = first.local_addr().unwrap().port();
        for listener in [first, TcpListener::bind((at(3), ssh_port)).await.unwrap()] {
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let _ = stream.write_all(b"SSH-2.0-guest\r\n").await;
                }
            });
        }
        let arp = dir.path().join("arp");
        let table = "#!/bin/sh
cat <<END
? (127.64.8.1) at be:d0:74:22:80:64 on bridge100 ifscope permanent [bridge]
? (127.64.8.2) at 2:0:0:0:0:2 on bridge100 ifscope [bridge]
? (127.64.8.3) at 2:0:0:0:0:3 on bridge100 ifscope [bridge]
? (127.64.8.4) at 2:0:0:0:0:4 on bridge100 ifscope [bridge]
END
";
        std::fs::write(&arp, table).unwrap();
        std::fs::set_permissions(&arp, std::fs::Permissions::from_mode(0o755)).unwrap();
        let launcher = vec!["/mayfly".to_owned()];
        let settings = Settings {
            arp,
            lease_file: dir.path().join("leases"),
            ssh_port,
            agent_after: Duration::ZERO,
            scan: Some(at(1)),
            ..Settings::new(dir.path(), dir.path().join("runs"), launcher)
        };
        let name = InstanceName::read("mayfly-01933b5c-7e5e-7c7a-9d5b-1f2e3d4c5b6a").unwrap();
        let paths = TartPaths::new(&settings, &name);
        let scan = NatScan::default();
        let find = async |settings: &Settings, host: u8| {
            let mac = Mac::parse(&format!("02:00:00:00:00:{host:02}")).unwrap();
            find(settings, &paths, &name, mac, &scan, || Ok(Command::new("/bin/false", Duration::from_secs(10))))
                .await
                .unwrap()
        };
        assert_eq!(find(&settings, 2).await, None, "it has not started");
        std::fs::create_dir_all(paths.control_sock().parent().unwrap()).unwrap();
        std::fs::write(paths.control_sock(), "").unwrap();
        assert_eq!(find(&settings, 2).await, Some(at(2)));
        assert_eq!(find(&settings, 3).await, Some(at(3)));
        assert_eq!(find(&settings, 4).await, None, "in the table, and silent");
        assert_eq!(find(&settings, 5).await, None, "not in the table");
        let off = Settings { scan: None, ..settings.clone() };
        assert_eq!(find(&off, 2).await, None);
        let bridged = Network::Bridged { interfaces: vec!["en0".to_owned()] };
        let bridged = Settings { network: bridged, arp: "/bin/true".into(), ..settings };
        assert_eq!(find(&bridged, 2).await, None);
    }

    #[test]
    fn an_address_is_found_among_warnings() {
        let ip = Some(Ipv4Addr::new(192, 168, 64, 5));
        for text in [
            "192.168.64.5\n",
            "warning: Tart 2.36.0 is available\n192.168.64.5\n",
            "Failed to perform garbage collection: no access\n  192.168.64.5\nwarning: the agent is old\n",
        ] {
            assert_eq!(printed(text), ip, "{text}");
        }
        for text in ["", "warning: 192.168.64.5 is in use\n", "192.168.64.5\n192.168.64.6\n", "fe80::1\n"] {
            assert_eq!(printed(text), None, "{text}");
        }
    }
}
