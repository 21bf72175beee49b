//! Parses the host's DHCP leases: which address was given to which guest.
//!
//! ```text
//! {
//!     name=admins-virtual-machine
//!     ip_address=192.168.64.3
//!     hw_address=1,a:b:c:d:e:f
//!     identifier=1,a:b:c:d:e:f
//!     lease=0x66f1a2b3
//! }
//! ```
//!
//! `lease` is its expiry, in seconds since 1970. Expired entries stay in the file until the pool is exhausted. A
//! guest that identifies itself by something other than its Ethernet address (`hw_address=ff,…`) cannot be
//! identified.

use std::net::Ipv4Addr;

use super::failure::shown;
use crate::domain::mac::Mac;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpLease {
    pub ip: Ipv4Addr,
    /// `None`: the guest did not identify itself by its Ethernet address.
    pub mac: Option<Mac>,
    pub expires: u64,
}

/// The result for one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseLookup {
    Nothing,
    Address(Ipv4Addr),
    /// Another guest has an unexpired lease of the same address, so it is not known which one would answer.
    Disputed {
        ip: Ipv4Addr,
        other: Mac,
    },
}

/// Incomplete entries are skipped, because the file may be read while it is rewritten. A file without any entry is
/// not a lease file.
pub fn parse(bytes: &[u8]) -> Result<Vec<DhcpLease>, String> {
    let text = String::from_utf8_lossy(bytes);
    let (mut leases, mut open, mut blocks) = (Vec::new(), None::<Fields>, 0);
    for line in text.lines().map(str::trim) {
        match (line, &mut open) {
            ("{", _) => {
                blocks += 1;
                open = Some(Fields::default());
            }
            ("}", Some(fields)) => {
                leases.extend(fields.lease());
                open = None;
            }
            (line, Some(fields)) => {
                if let Some((key, value)) = line.split_once('=') {
                    fields.take(key.trim(), value.trim());
                }
            }
            _ => {}
        }
    }
    if blocks == 0 && !text.trim().is_empty() {
        return Err(format!("expected blocks of leases between braces; found: {}", shown(bytes)));
    }
    Ok(leases)
}

#[derive(Default)]
struct Fields {
    ip: Option<Ipv4Addr>,
    hardware: Option<String>,
    expires: Option<u64>,
}

impl Fields {
    fn take(&mut self, key: &str, value: &str) {
        match key {
            "ip_address" => self.ip = value.parse().ok(),
            "hw_address" => self.hardware = Some(value.to_owned()),
            "lease" => self.expires = value.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok()),
            _ => {}
        }
    }

    fn lease(&self) -> Option<DhcpLease> {
        let mac = self.hardware.as_deref()?.strip_prefix("1,").and_then(Mac::parse);
        Some(DhcpLease { ip: self.ip?, mac, expires: self.expires? })
    }
}

/// The expiry of the newest lease of this guest, also if it is past.
pub fn newest(leases: &[DhcpLease], mac: Mac) -> Option<u64> {
    leases.iter().filter(|l| l.mac == Some(mac)).map(|l| l.expires).max()
}

/// The address of the guest `mac`. `before` is the newest expiry in the file when the guest was started: only a later
/// lease belongs to this run.
pub fn find(leases: &[DhcpLease], mac: Mac, before: Option<u64>, now: u64) -> LeaseLookup {
    let valid = |lease: &&DhcpLease| lease.expires > now;
    let ours = leases
        .iter()
        .filter(|l| l.mac == Some(mac))
        .filter(valid)
        .filter(|l| before.is_none_or(|before| l.expires > before))
        .max_by_key(|l| l.expires);
    let Some(lease) = ours else { return LeaseLookup::Nothing };
    let rival = leases.iter().filter(valid).filter(|l| l.ip == lease.ip).find_map(|l| l.mac.filter(|m| *m != mac));
    match rival {
        Some(other) => LeaseLookup::Disputed { ip: lease.ip, other },
        None => LeaseLookup::Address(lease.ip),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &[u8] = include_bytes!("fixtures/dhcpd_leases");
    /// Before the lease of `fresh`, after that of `old`.
    const NOW: u64 = 0x6700_0000;

    fn mac(text: &str) -> Mac {
        Mac::parse(text).unwrap()
    }

    fn address(last: u8) -> LeaseLookup {
        LeaseLookup::Address(Ipv4Addr::new(192, 168, 64, last))
    }

    #[test]
    fn the_newest_unexpired_lease_counts() {
        let leases = parse(FILE).unwrap();
        assert_eq!(leases.len(), 7);
        // Written with leading zeros in a configuration, without them in the file.
        assert_eq!(find(&leases, mac("0a:0b:0c:0d:0e:0f"), None, NOW), address(4), "of two, the newer one");
        assert_eq!(find(&leases, mac("02:00:00:00:00:07"), None, NOW), LeaseLookup::Nothing, "expired");
        assert_eq!(find(&leases, mac("02:00:00:00:00:07"), None, 0), address(7));
        assert_eq!(find(&leases, mac("02:00:00:00:00:99"), None, NOW), LeaseLookup::Nothing);
    }

    #[test]
    fn a_lease_from_before_the_start_is_not_believed() {
        let leases = parse(FILE).unwrap();
        let guest = mac("0a:0b:0c:0d:0e:0f");
        let newest = newest(&leases, guest).unwrap();
        assert_eq!(find(&leases, guest, Some(newest - 1), NOW), address(4));
        assert_eq!(find(&leases, guest, Some(newest), NOW), LeaseLookup::Nothing);
        assert_eq!(super::newest(&leases, mac("02:00:00:00:00:99")), None);
    }

    #[test]
    fn an_address_of_two_guests_is_neithers() {
        let leases = parse(FILE).unwrap();
        let (one, two) = (mac("02:00:00:00:00:21"), mac("02:00:00:00:00:22"));
        let ip = Ipv4Addr::new(192, 168, 64, 20);
        assert_eq!(find(&leases, one, None, NOW), LeaseLookup::Disputed { ip, other: two });
        assert_eq!(find(&leases, two, None, NOW), LeaseLookup::Disputed { ip, other: one });
        // Until one of them expires.
        let later = leases.iter().filter(|l| l.ip == ip).map(|l| l.expires).min().unwrap();
        assert_eq!(find(&leases, two, None, later), address(20));
        assert_eq!(find(&leases, one, None, later), LeaseLookup::Nothing);
    }

    #[test]
    fn a_guest_with_a_client_identifier_is_not_identified() {
        let leases = parse(FILE).unwrap();
        let unknown: Vec<_> = leases.iter().filter(|l| l.mac.is_none()).collect();
        assert_eq!(unknown.len(), 1, "{unknown:?}");
    }

    #[test]
    fn half_an_entry_is_no_lease_and_rubbish_is_no_file() {
        let whole = parse(FILE).unwrap().len();
        // Wherever the file is cut, complete entries before the cut are read, and nothing else.
        for cut in 0..FILE.len() {
            if let Ok(leases) = parse(&FILE[..cut]) {
                assert!(leases.len() <= whole);
                assert!(parse(FILE).unwrap().starts_with(&leases));
            }
        }
        assert_eq!(parse(b"").unwrap(), []);
        assert_eq!(parse(b"\n").unwrap(), []);
        assert_eq!(
            parse(b"<html>not a lease\x01").unwrap_err(),
            "expected blocks of leases between braces; found: \"<html>not a lease\\u{1}\""
        );
    }
}
