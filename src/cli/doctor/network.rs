//! Checks the network between a Mac and its guests: free addresses, and macOS's Local Network privacy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    finding::{Check, Finding, strange},
    mac::default_setting,
    probe::{HostProbe, Probed, Unseen},
    setup::DoctorSetup,
};
use crate::drivers::{dhcp_leases, tart::NetworkKind};

const LEASE_TIME: Check = Check::new("network.lease_time", "DHCP lease time", "at most an hour; 600 s is a good value");
const LEASES: Check = Check::new("network.leases", "DHCP leases", "addresses left for new guests");
const LOCAL: Check =
    Check::new("network.local_network", "Local Network", "the service may connect to its guests (macOS 15 and later)");

const GATEWAY: Check =
    Check::new("network.gateway", "Guests' gateway", "drivers.tart.gateway is the Mac's address among its guests");

/// Unless it was moved.
const DEFAULT_GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 64, 1);
/// What macOS takes when nothing is set, in seconds.
const DEFAULT_LEASE: u32 = 86_400;
/// Of a /24: less network, broadcast, and the Mac's own.
const ADDRESSES: usize = 253;
const FEW_LEFT: usize = 50;
const LEASES_LIMIT: usize = 4 << 20;

const SHARING: &str = "/Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist";
const VMNET: &str = "/Library/Preferences/SystemConfiguration/com.apple.vmnet.plist";
const LOCAL_DOMAIN: &str = "com.apple.network.local-network";
/// macOS heeds what root set for itself. This user may not read that, unless it was made readable.
const LOCAL_OF_ROOT: &str = "/var/root/Library/Preferences/com.apple.network.local-network";
const LOCAL_OF_ALL: &str = "/Library/Preferences/com.apple.network.local-network";
const ALLOWED: &str = "AllowedEthernetLocalNetworkAddresses";

const SHORTEN: &str = "shorten it (holds from the next guest on, and after restarts):\n    \
     sudo defaults write /Library/Preferences/SystemConfiguration/com.apple.InternetSharing.default.plist bootpd -dict DHCPLeaseTimeSecs -int 600";

pub struct NetworkFacts {
    now: i64,
    uid: u32,
    bootpd: Probed<Option<String>>,
    leases: Probed<Vec<u8>>,
    /// Networks that are excepted from Local Network privacy, wherever this user may read of them.
    allowed: Vec<String>,
    /// The Mac's address among its guests, where it was moved.
    moved: Probed<Option<String>>,
}

/// `macos`: the major version, where it is known.
pub fn judge(facts: &NetworkFacts, setup: &DoctorSetup, macos: Option<u32>) -> Vec<Finding> {
    if !setup.config.drivers.tart.enabled {
        return Vec::new();
    }
    if setup.config.drivers.tart.network == NetworkKind::Bridged {
        const ELSEWHERE: &str = "bridged guests get their addresses from the local network";
        return vec![
            LEASE_TIME.not_needed(ELSEWHERE),
            LEASES.not_needed(ELSEWHERE),
            GATEWAY.not_needed(ELSEWHERE),
            local_network(facts, setup, macos),
        ];
    }
    vec![lease_time(facts, setup), leases(facts, setup), gateway(facts, setup), local_network(facts, setup, macos)]
}

pub async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> NetworkFacts {
    let leases = &setup.config.drivers.tart.lease_file;
    let (bootpd, leases, root, all, moved) = tokio::join!(
        default_setting(probe, SHARING, "bootpd"),
        probe.read(leases, LEASES_LIMIT),
        default_setting(probe, LOCAL_OF_ROOT, ALLOWED),
        default_setting(probe, LOCAL_OF_ALL, ALLOWED),
        default_setting(probe, VMNET, "Shared_Net_Address"),
    );
    let allowed = [root, all].into_iter().filter_map(|seen| seen.ok().flatten()).collect();
    NetworkFacts { now: probe.now().as_second(), uid: probe.uid(), bootpd, leases, allowed, moved }
}

fn lease_time(facts: &NetworkFacts, setup: &DoctorSetup) -> Finding {
    if setup.tart.softnet {
        return LEASE_TIME.ok("600 s, which Softnet sets by itself");
    }
    let text = match &facts.bootpd {
        Ok(None) => {
            return LEASE_TIME
                .warn(format!("{DEFAULT_LEASE} s, the default of macOS: {ADDRESSES} new guests a day"), SHORTEN);
        }
        Ok(Some(text)) => text,
        Err(why) => return LEASE_TIME.could_not_look(why),
    };
    // A property list in the old format: `{ DHCPLeaseTimeSecs = 600; }`
    let value = text.split([';', '{', '}']).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim().trim_matches('"') == "DHCPLeaseTimeSecs").then(|| value.trim().trim_matches('"').to_owned())
    });
    match value.as_deref().map(str::parse::<u32>) {
        None if text.trim_start().starts_with('{') => {
            LEASE_TIME.warn(format!("{DEFAULT_LEASE} s, the default of macOS"), SHORTEN)
        }
        Some(Ok(seconds)) if seconds > 3600 => LEASE_TIME.warn(format!("{seconds} s"), SHORTEN),
        Some(Ok(seconds)) if seconds < 60 => {
            LEASE_TIME.warn(format!("{seconds} s: guests renew their leases very often"), SHORTEN)
        }
        Some(Ok(seconds)) => LEASE_TIME.ok(format!("{seconds} s")),
        None | Some(Err(_)) => LEASE_TIME.could_not_look(strange("DHCPLeaseTimeSecs and a number", text)),
    }
}

fn leases(facts: &NetworkFacts, setup: &DoctorSetup) -> Finding {
    let file = setup.config.drivers.tart.lease_file.display();
    let bytes = match &facts.leases {
        Ok(bytes) => bytes,
        Err(Unseen::Absent) => return LEASES.ok("no lease has been issued yet"),
        Err(why) => return LEASES.could_not_look(format!("{file}: {why}")),
    };
    let leases = match dhcp_leases::parse(bytes) {
        Ok(leases) => leases,
        Err(why) => return LEASES.could_not_look(format!("{file}: {why}")),
    };
    // Each start of a guest may add an entry of the same address.
    let now = u64::try_from(facts.now).unwrap_or(0);
    let held = leases.iter().filter(|lease| lease.expires > now).map(|lease| lease.ip).collect::<BTreeSet<_>>().len();
    let free = ADDRESSES.saturating_sub(held);
    let found = format!("{free} of {ADDRESSES} addresses free");
    let remedy = format!("{SHORTEN}\nthen remove the existing leases while no guest is running:\n    sudo rm {file}");
    match free {
        0 => LEASES.fail(format!("{found}: new guests get none"), remedy),
        1..FEW_LEFT => LEASES.warn(found, remedy),
        _ => LEASES.ok(found),
    }
}

/// Guests are told to reach the guest API at this address.
fn gateway(facts: &NetworkFacts, setup: &DoctorSetup) -> Finding {
    let ours = setup.config.drivers.tart.gateway;
    let moved = match &facts.moved {
        Ok(None) => DEFAULT_GATEWAY,
        Ok(Some(text)) => match text.trim().parse() {
            Ok(address) => address,
            Err(_) => return GATEWAY.could_not_look(strange("an address as Shared_Net_Address", text)),
        },
        Err(why) => return GATEWAY.could_not_look(why),
    };
    if ours == IpAddr::V4(moved) {
        return GATEWAY.ok(ours.to_string());
    }
    GATEWAY.fail(
        format!("the Mac's address among its guests is {moved}, but drivers.tart.gateway is {ours}"),
        format!(
            "set it in mayfly.toml, otherwise no guest reaches the guest API:\n    drivers.tart.gateway = \"{moved}\""
        ),
    )
}

/// The permission itself is shown to no program. What can be seen is whether it is needed, and whether an exception from it is
/// set where this user may read it; one that root wrote for itself may not be read.
fn local_network(facts: &NetworkFacts, setup: &DoctorSetup, macos: Option<u32>) -> Finding {
    match macos {
        Some(..15) => return LOCAL.not_needed("macOS has this permission from 15 on"),
        None => return LOCAL.could_not_look("the version of macOS is not known"),
        Some(_) => {}
    }
    let direct = |driver: &str| matches!(driver, "tart" | "macosvm");
    let mut templates = setup.templates.iter().filter(|template| direct(&template.driver)).peekable();
    if templates.peek().is_some() && templates.all(|template| template.handover == "agent") {
        return LOCAL.ok("not needed: all templates' guests are reached by their agent");
    }
    if facts.uid == 0 {
        return LOCAL.ok("not needed by root");
    }
    // Bridged guests are in the local network, whose range is not known here.
    let guests = match setup.config.drivers.tart.gateway {
        IpAddr::V4(gateway) => gateway,
        IpAddr::V6(_) => DEFAULT_GATEWAY,
    };
    let networks = facts.allowed.iter().flat_map(|text| {
        text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '/')).filter(|word| word.contains('/'))
    });
    if networks.into_iter().any(|network| covers(network, guests)) {
        return LOCAL.ok("guests' network is excepted from it");
    }
    LOCAL.warn(
        "programs cannot read this permission, and no exception from it was found",
        format!(
            "if guests stay unreachable (\"No route to host\") while ssh in Terminal reaches them: allow mayfly in System \
             Settings, Privacy & Security, Local Network; or except the guests' network and restart the Mac; or let guests be \
             reached by their agent, which needs neither:\n    \
             sudo defaults write {LOCAL_DOMAIN} {ALLOWED} -array-add {0}\n    \
             sudo defaults write {LOCAL_DOMAIN} AllowedWiFiLocalNetworkAddresses -array-add {0}",
            network_of(guests)
        ),
    )
}

fn network_of(guests: Ipv4Addr) -> String {
    let [a, b, c, _] = guests.octets();
    format!("{a}.{b}.{c}.0/24")
}

fn covers(network: &str, address: Ipv4Addr) -> bool {
    let Some((base, bits)) = network.split_once('/') else { return false };
    let (Ok(base), Ok(bits @ 0..=32)) = (base.parse::<Ipv4Addr>(), bits.parse::<u32>()) else { return false };
    let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
    u32::from(base) & mask == u32::from(address) & mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_cover_addresses() {
        let guest = Ipv4Addr::new(192, 168, 64, 1);
        for yes in ["192.168.64.0/24", "192.168.0.0/16", "0.0.0.0/0", "192.168.64.1/32"] {
            assert!(covers(yes, guest), "{yes}");
        }
        for no in ["192.168.65.0/24", "10.0.0.0/8", "192.168.64.0/33", "192.168.64.0", "x/24"] {
            assert!(!covers(no, guest), "{no}");
        }
    }
}
