//! Finds the address of a guest of Apple's framework in the host's tables. The guest's Ethernet address is unique on
//! this host, so entries with that address are about this guest.

use std::{
    io,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    DriverError, ErrorKind, Result, arp,
    dhcp_leases::{self, DhcpLease, LeaseLookup},
    failure::{self, shown},
    nat_scan::NatScan,
};
use crate::{
    domain::{Code, mac::Mac},
    platform::{clock, process::Command},
};

const ARP: Duration = Duration::from_secs(5);

/// The leases of the host's DHCP server, as far as they concern one guest.
pub struct GuestLeases<'a> {
    /// The server's file.
    pub file: &'a Path,
    /// Where the guest's leases before its start are recorded.
    pub before: PathBuf,
    pub mac: Mac,
}

impl GuestLeases<'_> {
    pub fn address(&self) -> Result<Option<Ipv4Addr>> {
        let before = self.before().map_err(|error| failure::unseen(error, "the guest's earlier leases"))?;
        match dhcp_leases::find(&self.read()?, self.mac, before, now()) {
            LeaseLookup::Nothing => Ok(None),
            LeaseLookup::Address(ip) => Ok(Some(ip)),
            LeaseLookup::Disputed { ip, other } => {
                let summary = format!(
                    "the host's DHCP leases give {ip} to this guest ({}) and to another ({other}): neither is reached there \
                     until one of them expires",
                    self.mac
                );
                Err(DriverError::new(ErrorKind::Retry, Code::GuestNotReady, summary))
            }
        }
    }

    /// Records the guest's leases before it starts, so that an address of an earlier run is not taken for that of the
    /// new run. A VM that runs for the first time has a new Ethernet address and no leases.
    pub fn record(&self) -> io::Result<()> {
        let leases = self.read().unwrap_or_else(|fault| {
            // Reported when the address is needed; the guest may also be reached without one.
            tracing::warn!(error = %fault, "cannot record the host's DHCP leases before a start");
            Vec::new()
        });
        match dhcp_leases::newest(&leases, self.mac) {
            Some(expires) => std::fs::write(&self.before, format!("{} {expires}\n", self.mac)),
            None => match std::fs::remove_file(&self.before) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
        }
    }

    fn read(&self) -> Result<Vec<DhcpLease>> {
        let bytes = match std::fs::read(self.file) {
            Ok(bytes) => bytes,
            // The host's DHCP server has not issued a lease yet.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failure::unseen(error, "the host's DHCP leases")),
        };
        dhcp_leases::parse(&bytes).map_err(|why| {
            let summary = format!("{} was not understood: {why}", self.file.display());
            DriverError::new(ErrorKind::Retry, Code::HostUnavailable, summary)
        })
    }

    fn before(&self) -> io::Result<Option<u64>> {
        let text = match std::fs::read_to_string(&self.before) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let noted = text.trim().split_once(' ');
        // Tart gives a VM a new Ethernet address if another running VM has the same.
        let noted = noted.filter(|(noted, _)| Mac::parse(noted) == Some(self.mac));
        Ok(noted.and_then(|(_, expires)| expires.parse().ok()))
    }
}

fn now() -> u64 {
    u64::try_from(clock::now().as_second()).unwrap_or_default()
}

/// The address in the ARP table, which `program` prints.
pub async fn by_arp(program: &Path, mac: Mac) -> Result<Option<Ipv4Addr>> {
    let output = Command::new(program, ARP)
        .arg("-an")
        .run()
        .await
        .map_err(|error| failure::unseen(io::Error::other(error), "the host's ARP table"))?;
    let failed = |why: String| {
        DriverError::new(ErrorKind::Retry, Code::HostUnavailable, format!("`arp -an` was not understood: {why}"))
    };
    if !output.status.success() {
        return Err(failed(format!(
            "it ended with {} and said {}",
            output.status,
            shown(output.stderr_tail.as_bytes())
        )));
    }
    arp::find(&output.stdout, mac).map_err(failed)
}

/// The guest's address in the network of `gateway`, if an SSH server answers there on `port` and the ARP table has it, and no
/// other one, for the guest.
pub async fn by_scan(
    scan: &NatScan,
    (gateway, port): (Ipv4Addr, u16),
    arp: &Path,
    mac: Mac,
) -> Result<Option<Ipv4Addr>> {
    let answering = scan.answering(gateway, port).await;
    if answering.is_empty() {
        return Ok(None);
    }
    Ok(by_arp(arp, mac).await?.filter(|ip| answering.contains(ip)))
}
