//! Checks the network between a Mac and its guests: free addresses, and macOS's Local Network privacy.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use super::{
    finding::{Check, Finding, strange},
    mac::default_setting,
    probe::{HostProbe, Probed, Unseen},
    setup::DoctorSetup,
};
use crate::drivers::{dhcp_leases, macosvm::MacosvmNetworkKind, tart::NetworkKind};

const LEASE_TIME: Check = Check::new("network.lease_time", "DHCP lease time", "at most an hour; 600 s is a good value");
const LEASES: Check = Check::new("network.leases", "DHCP leases", "addresses left for new guests");
const LOCAL: Check =
    Check::new("network.local_network", "Local Network", "the service may connect to its guests (macOS 15 and later)");

const GATEWAY: Check =
    Check::new("network.gateway", "Guests' gateway", "the driver's gateway is the Mac's address among its guests");

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

/// A driver whose guests are in macOS's own network (NAT).
struct NatDriver<'a> {
    /// Its section of the configuration.
    section: &'static str,
    gateway: IpAddr,
    lease_file: &'a Path,
    /// Sets a short lease time by itself.
    softnet: bool,
}

fn nat_drivers(setup: &DoctorSetup) -> Vec<NatDriver<'_>> {
    let (tart, macosvm) = (&setup.config.drivers.tart, &setup.config.drivers.macosvm);
    let of_tart = NatDriver {
        section: "drivers.tart",
        gateway: tart.gateway,
        lease_file: &tart.lease_file,
        softnet: setup.tart.softnet,
    };
    let of_macosvm = NatDriver {
        section: "drivers.macosvm",
        gateway: macosvm.gateway,
        lease_file: &macosvm.lease_file,
        softnet: false,
    };
    let tart_nat = tart.enabled && tart.network != NetworkKind::Bridged;
    let macosvm_nat = macosvm.enabled && macosvm.network == MacosvmNetworkKind::Nat;
    tart_nat.then_some(of_tart).into_iter().chain(macosvm_nat.then_some(of_macosvm)).collect()
}

/// The file of leases. Drivers with different files are not expected: macOS has one.
fn lease_file<'a>(drivers: &[NatDriver<'a>], setup: &'a DoctorSetup) -> &'a Path {
    drivers.first().map_or(&setup.config.drivers.tart.lease_file, |driver| driver.lease_file)
}

/// `macos`: the major version, where it is known.
pub fn judge(facts: &NetworkFacts, setup: &DoctorSetup, macos: Option<u32>) -> Vec<Finding> {
    if !setup.config.drivers.tart.enabled && !setup.config.drivers.macosvm.enabled {
        return Vec::new();
    }
    let drivers = nat_drivers(setup);
    let local = local_network(facts, setup, macos);
    if drivers.is_empty() {
        const ELSEWHERE: &str = "bridged guests get their addresses from the local network";
        return vec![
            LEASE_TIME.not_needed(ELSEWHERE),
            LEASES.not_needed(ELSEWHERE),
            GATEWAY.not_needed(ELSEWHERE),
            local,
        ];
    }
    let leases = leases(facts, lease_file(&drivers, setup));
    vec![lease_time(facts, &drivers), leases, gateway(facts, &drivers), local]
}

pub async fn look(probe: &dyn HostProbe, setup: &DoctorSetup) -> NetworkFacts {
    let leases = lease_file(&nat_drivers(setup), setup);
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

fn lease_time(facts: &NetworkFacts, drivers: &[NatDriver<'_>]) -> Finding {
    if drivers.iter().all(|driver| driver.softnet) {
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

fn leases(facts: &NetworkFacts, file: &Path) -> Finding {
    let file = file.display();
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
fn gateway(facts: &NetworkFacts, drivers: &[NatDriver<'_>]) -> Finding {
    let moved = match &facts.moved {
        Ok(None) => DEFAULT_GATEWAY,
        Ok(Some(text)) => match text.trim().parse() {
            Ok(address) => address,
            Err(_) => return GATEWAY.could_not_look(strange("an address as Shared_Net_Address", text)),
        },
        Err(why) => return GATEWAY.could_not_look(why),
    };
    let (mut found, mut remedy) = (Vec::new(), Vec::new());
    for NatDriver { section, gateway, .. } in drivers.iter().filter(|driver| driver.gateway != IpAddr::V4(moved)) {
        found.push(format!("{section}.gateway is {gateway}"));
        remedy.push(format!("    {section}.gateway = \"{moved}\""));
    }
    if found.is_empty() {
        return GATEWAY.ok(moved.to_string());
    }
    GATEWAY.fail(
        format!("the Mac's address among its guests is {moved}, but {}", found.join(", and ")),
        format!("set it in mayfly.toml, otherwise no guest reaches the guest API:\n{}", remedy.join("\n")),
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
    let networks = facts.allowed.iter().flat_map(|text| {
        text.split(|c: char| !(c.is_ascii_digit() || c == '.' || c == '/')).filter(|word| word.contains('/'))
    });
    let networks: Vec<&str> = networks.collect();
    let uncovered = guest_gateways(setup).into_iter().filter(|gateway| !networks.iter().any(|n| covers(n, *gateway)));
    let missing: BTreeSet<String> = uncovered.map(network_of).collect();
    if missing.is_empty() {
        return LOCAL.ok("guests' network is excepted from it");
    }
    LOCAL.warn(
        format!("programs cannot read this permission, and no exception for {} was found", joined(&missing, " and ")),
        format!(
            "if guests stay unreachable (\"No route to host\") while ssh in Terminal reaches them: allow mayfly in System \
             Settings, Privacy & Security, Local Network; or except the guests' network and restart the Mac; or let guests be \
             reached by their agent, which needs neither:\n    \
             sudo defaults write {LOCAL_DOMAIN} {ALLOWED} -array-add {0}\n    \
             sudo defaults write {LOCAL_DOMAIN} AllowedWiFiLocalNetworkAddresses -array-add {0}",
            joined(&missing, " ")
        ),
    )
}

fn joined(networks: &BTreeSet<String>, with: &str) -> String {
    networks.iter().map(String::as_str).collect::<Vec<_>>().join(with)
}

/// An address of this Mac in each network of its guests. For bridged guests that is the driver's `gateway`, if it was set; with
/// `guest.advertise_url` alone, their network is not known here. If no address is known, that of NAT by default.
fn guest_gateways(setup: &DoctorSetup) -> BTreeSet<Ipv4Addr> {
    let (tart, macosvm) = (&setup.config.drivers.tart, &setup.config.drivers.macosvm);
    let drivers = [
        (tart.enabled, tart.network == NetworkKind::Bridged, tart.gateway),
        (macosvm.enabled, macosvm.network != MacosvmNetworkKind::Nat, macosvm.gateway),
    ];
    let known = drivers.into_iter().filter_map(|(enabled, bridged, gateway)| match gateway {
        IpAddr::V4(gateway) if enabled && !(bridged && gateway == DEFAULT_GATEWAY) => Some(gateway),
        _ => None,
    });
    let known: BTreeSet<Ipv4Addr> = known.collect();
    if known.is_empty() { BTreeSet::from([DEFAULT_GATEWAY]) } else { known }
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

    /// A Mac whose address among its guests was moved.
    fn moved_mac() -> NetworkFacts {
        let nothing = || Err(Unseen::Absent);
        NetworkFacts {
            now: 0,
            uid: 501,
            bootpd: Ok(None),
            leases: nothing(),
            allowed: Vec::new(),
            moved: Ok(Some("192.168.70.1".to_owned())),
        }
    }

    fn setup(tart: bool, macosvm: bool) -> DoctorSetup {
        let mut config = crate::config::Config::defaults("/nowhere".into());
        config.drivers.tart.enabled = tart;
        config.drivers.macosvm.enabled = macosvm;
        let tart = super::super::setup::TartSetup { enabled: tart, binary: "tart".into(), home: None, softnet: true };
        DoctorSetup { data_dir: "/nowhere".into(), config, tart, templates: Vec::new(), boot_guest: false }
    }

    #[test]
    fn each_driver_with_guests_in_the_network_of_macos_is_judged() {
        let found = |tart, macosvm| {
            let findings = judge(&moved_mac(), &setup(tart, macosvm), Some(15));
            let of = |check: Check| findings.iter().find(|f| f.id == check.id).map(|f| f.found.clone());
            (of(GATEWAY), of(LEASE_TIME))
        };
        let gateway = |of: &str| Some(format!("the Mac's address among its guests is 192.168.70.1, but {of}"));
        assert_eq!(found(false, false), (None, None));
        let (moved, lease_time) = found(true, false);
        assert_eq!(moved, gateway("drivers.tart.gateway is 192.168.64.1"));
        assert_eq!(lease_time.as_deref(), Some("600 s, which Softnet sets by itself"));
        // Guests of macosvm have the lease time of macOS, whatever Tart does for its own.
        for tart in [false, true] {
            assert_ne!(found(tart, true).1, lease_time);
        }
        assert_eq!(found(false, true).0, gateway("drivers.macosvm.gateway is 192.168.64.1"));
        let both = "drivers.tart.gateway is 192.168.64.1, and drivers.macosvm.gateway is 192.168.64.1";
        assert_eq!(found(true, true).0, gateway(both));
    }

    #[test]
    fn the_networks_of_all_enabled_drivers_need_an_exception() {
        let mut setup = setup(true, true);
        setup.config.drivers.tart.network = NetworkKind::Bridged;
        setup.config.drivers.tart.gateway = "10.20.30.1".parse().unwrap();
        let found = |allowed: &[&str]| {
            let allowed = allowed.iter().map(|network| network.to_string()).collect();
            local_network(&NetworkFacts { allowed, ..moved_mac() }, &setup, Some(15))
        };
        let remedy = |finding: &Finding| finding.remedy.clone().unwrap_or_default();
        assert!(remedy(&found(&[])).contains("-array-add 10.20.30.0/24 192.168.64.0/24\n"));
        let nat_only = found(&["192.168.64.0/24"]);
        assert!(remedy(&nat_only).contains("-array-add 10.20.30.0/24\n"), "{}", remedy(&nat_only));
        assert!(nat_only.found.ends_with("no exception for 10.20.30.0/24 was found"), "{}", nat_only.found);
        assert_eq!(found(&["192.168.64.0/24", "10.20.0.0/16"]).found, "guests' network is excepted from it");
        setup.config.drivers.tart.gateway = DEFAULT_GATEWAY.into();
        setup.config.drivers.macosvm.gateway = "10.0.0.1".parse().unwrap();
        let facts = NetworkFacts { allowed: vec!["10.0.0.0/8".to_owned()], ..moved_mac() };
        // Nothing says in which network the bridged guests are.
        assert_eq!(local_network(&facts, &setup, Some(15)).found, "guests' network is excepted from it");
    }

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
