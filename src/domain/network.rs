//! What a guest may reach: the modes, the list of allowed destinations, and the decision about one destination.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a guest may reach. The guest API is reachable in every mode.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema, strum::IntoStaticStr,
)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "snake_case")]
pub enum NetworkMode {
    /// The guest API and nothing else.
    Isolated,
    /// Public addresses, and what the administrator allows in `network.allow`. Not this host, not other guests, not the
    /// metadata service of a cloud, and no private addresses besides the allowed ones.
    Internet,
    /// Everything that the host reaches, including services on its loopback interface.
    Host,
}

impl NetworkMode {
    /// From the strictest to the most open one.
    pub const ALL: [NetworkMode; 3] = [NetworkMode::Isolated, NetworkMode::Internet, NetworkMode::Host];

    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a guest in the mode `internet` may reach besides public addresses.
///
/// As text: `10.1.0.0/16`, `10.1.2.3:443`, `[fd12::/48]:443`, `gitea.example.org:3000`. Without a port, all ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AllowedDestination {
    pub host: AllowedHost,
    pub port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AllowedHost {
    Network(IpNet),
    /// The addresses that the host's resolver returns for this name.
    Name(String),
}

impl AllowedHost {
    /// Why no entry of the list may have this address.
    pub fn refusal(address: IpAddr) -> Option<NetworkRefusal> {
        closed_to_lists(address.to_canonical())
    }
}

/// What a text that is no `AllowedDestination` should have been.
const DESTINATION_RULE: &str = "expected an address, a network or a name, each with an optional port: `10.1.0.0/16`, \
                                `10.1.2.3:443`, `[fd12::/48]:443`, `gitea.example.org:3000`";

impl FromStr for AllowedDestination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{DESTINATION_RULE}; found {text:.120?}");
        let (host, port) = split_port(text).ok_or_else(wrong)?;
        let host = match network(host) {
            Some(network) => AllowedHost::Network(network),
            None if is_host_name(host) => AllowedHost::Name(host.to_ascii_lowercase()),
            None => return Err(wrong()),
        };
        if let AllowedHost::Network(network) = &host
            && let Some(never) = never_allowed(network)
        {
            return Err(format!("{text} cannot be allowed: {never}. A vm with `network: host` reaches it"));
        }
        Ok(Self { host, port })
    }
}

/// The host and the port. An IPv6 address with a port is in brackets.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0);
    if let Some(rest) = text.strip_prefix('[') {
        let (host, after) = rest.split_once(']')?;
        return match after.strip_prefix(':') {
            Some(number) => Some((host, Some(port(number)?))),
            None => after.is_empty().then_some((host, None)),
        };
    }
    match text.split_once(':') {
        // An IPv6 address.
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((host, number)) => Some((host, Some(port(number)?))),
        None => Some((text, None)),
    }
}

fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from)).map(|net| net.trunc())
}

fn is_host_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
    };
    // Numbers and dots only: a mistyped address.
    text.len() <= 253 && text.split('.').all(label) && text.bytes().any(|b| b.is_ascii_alphabetic())
}

/// Why no entry of the list may open this network, if it lies completely in such a range. A larger network may
/// contain one; the decision about each destination excludes it.
fn never_allowed(network: &IpNet) -> Option<&'static str> {
    let refusal = closed_to_lists(network.addr())?;
    (closed_to_lists(network.broadcast()) == Some(refusal)).then(|| refusal.describe())
}

impl fmt::Display for AllowedDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.host, self.port) {
            (AllowedHost::Network(IpNet::V6(network)), Some(port)) => write!(f, "[{network}]:{port}"),
            (AllowedHost::Network(network), Some(port)) => write!(f, "{network}:{port}"),
            (AllowedHost::Network(network), None) => write!(f, "{network}"),
            (AllowedHost::Name(name), Some(port)) => write!(f, "{name}:{port}"),
            (AllowedHost::Name(name), None) => f.write_str(name),
        }
    }
}

impl TryFrom<String> for AllowedDestination {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<AllowedDestination> for String {
    fn from(allowed: AllowedDestination) -> String {
        allowed.to_string()
    }
}

/// What one guest may reach.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPolicy {
    pub mode: NetworkMode,
    /// For the mode `internet`.
    #[serde(default)]
    pub allow: Vec<AllowedDestination>,
}

/// Why a guest may not reach a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum NetworkRefusal {
    /// The guest's mode is `isolated`.
    Isolated,
    /// Multicast, broadcast, unspecified or reserved: no host has such an address.
    NotUnicast,
    Loopback,
    /// Addresses of the local link, which clouds also use for their metadata service.
    LinkLocal,
    /// An address of this host.
    ThisHost,
    Private,
}

impl NetworkRefusal {
    pub fn describe(self) -> &'static str {
        match self {
            NetworkRefusal::Isolated => "the vm is isolated",
            NetworkRefusal::NotUnicast => "it is not the address of one host",
            NetworkRefusal::Loopback => "it is the loopback interface of this host",
            NetworkRefusal::LinkLocal => "it is a link-local address or a cloud's metadata service",
            NetworkRefusal::ThisHost => "it is an address of this host",
            NetworkRefusal::Private => "it is a private address that `network.allow` does not list",
        }
    }
}

/// What the decision depends on besides the policy. Read anew for each decision, because both change while a guest
/// runs.
pub trait Surroundings {
    /// Whether this host has the address.
    fn is_own(&self, address: IpAddr) -> bool;

    /// Whether the host's resolver returned the address for this name of the list.
    fn is_address_of(&self, name: &str, address: IpAddr) -> bool;

    /// The IPv4 addresses that this host's network may translate the address to (NAT64, RFC 6146), with the prefixes that it
    /// announces besides the well-known one.
    fn translations(&self, address: Ipv6Addr) -> Vec<Ipv4Addr>;
}

impl NetworkPolicy {
    /// Whether the guest may reach the destination.
    pub fn check(&self, destination: SocketAddr, surroundings: &impl Surroundings) -> Result<(), NetworkRefusal> {
        match self.mode {
            NetworkMode::Isolated => return Err(NetworkRefusal::Isolated),
            NetworkMode::Host => return Ok(()),
            NetworkMode::Internet => {}
        }
        // The kernel connects to the inner address of a mapped one.
        let address = destination.ip().to_canonical();
        // Where the connection may arrive after a router has translated its address. This adds refusals and opens nothing,
        // because the network's announcement is not trusted.
        let translations = match address {
            IpAddr::V6(address) => surroundings.translations(address),
            IpAddr::V4(_) => Vec::new(),
        };
        let translated = || translations.iter().copied().map(IpAddr::from);
        if let Some(refusal) = std::iter::once(address).chain(translated()).find_map(closed_to_lists) {
            return Err(refusal);
        }
        let listed = |exactly: bool| {
            self.allow.iter().any(|allowed| {
                allowed.port.is_none_or(|port| port == destination.port())
                    && match &allowed.host {
                        AllowedHost::Network(network) => {
                            network.contains(&address) && (!exactly || network.prefix_len() == network.max_prefix_len())
                        }
                        AllowedHost::Name(name) => surroundings.is_address_of(name, address),
                    }
                    && (!exactly || allowed.port.is_some())
            })
        };
        // A network that contains this host does not open this host: one service of it is listed by its address or
        // name, with its port.
        let embedded = match address {
            IpAddr::V6(address) => embedded_v4(address).map(IpAddr::from),
            IpAddr::V4(_) => None,
        };
        if [address].into_iter().chain(embedded).chain(translated()).any(|address| surroundings.is_own(address)) {
            return if listed(true) { Ok(()) } else { Err(NetworkRefusal::ThisHost) };
        }
        if (is_private(address) || translated().any(is_private)) && !listed(false) {
            return Err(NetworkRefusal::Private);
        }
        Ok(())
    }
}

/// Why no list opens this address.
fn closed_to_lists(address: IpAddr) -> Option<NetworkRefusal> {
    match address {
        IpAddr::V4(address) => closed_v4(address),
        IpAddr::V6(address) => closed_v6(address),
    }
}

fn closed_v4(address: Ipv4Addr) -> Option<NetworkRefusal> {
    match address.octets() {
        // "This network" (RFC 1122): Linux connects 0.0.0.0 to the loopback interface.
        [0, ..] | [127, ..] => Some(NetworkRefusal::Loopback),
        [169, 254, ..] => Some(NetworkRefusal::LinkLocal),
        // Metadata and agent services of Azure, Alibaba Cloud and Oracle Cloud, outside of the link-local network.
        [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, 192] => Some(NetworkRefusal::LinkLocal),
        // Multicast, and reserved addresses with the broadcast address (RFC 1112).
        [224..=255, ..] => Some(NetworkRefusal::NotUnicast),
        _ => None,
    }
}

fn closed_v6(address: Ipv6Addr) -> Option<NetworkRefusal> {
    if let Some(inner) = embedded_v4(address) {
        return closed_v4(inner);
    }
    if address.is_unspecified() || address.is_loopback() {
        return Some(NetworkRefusal::Loopback);
    }
    match address.segments() {
        [0xfe80..=0xfebf, ..] => Some(NetworkRefusal::LinkLocal),
        // The metadata services of Amazon EC2 and Google Cloud over IPv6.
        [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => {
            Some(NetworkRefusal::LinkLocal)
        }
        [0xff00..=0xffff, ..] => Some(NetworkRefusal::NotUnicast),
        _ => None,
    }
}

/// Whether an address is one of the internet: neither this host's, nor of a private network, a metadata service or a
/// special purpose.
pub fn is_public(address: IpAddr) -> bool {
    closed_to_lists(address).is_none() && !is_private(address)
}

/// Addresses that are not reachable globally, by the IANA special-purpose address registries.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_private_v4(address),
        IpAddr::V6(address) => is_private_v6(address),
    }
}

fn is_private_v4(address: Ipv4Addr) -> bool {
    matches!(
        address.octets(),
        [10, ..]
            | [172, 16..=31, ..]
            | [192, 168, ..]
            // Shared by the customers of a carrier (RFC 6598).
            | [100, 64..=127, ..]
            // Protocol assignments (RFC 6890), and the former relays of 6to4.
            | [192, 0, 0, _]
            | [192, 88, 99, _]
            // Benchmarks (RFC 2544).
            | [198, 18..=19, ..]
            // Documentation (RFC 5737).
            | [192, 0, 2, _]
            | [198, 51, 100, _]
            | [203, 0, 113, _]
    )
}

fn is_private_v6(address: Ipv6Addr) -> bool {
    // Where the IPv4 address is in an address of this network depends on the length of the prefix that is in use, and a wrong
    // guess would open a private address.
    if let [0x0064, 0xff9b, 1, ..] = address.segments() {
        return true;
    }
    if let Some(inner) = embedded_v4(address) {
        return is_private_v4(inner);
    }
    match address.segments() {
        // The part of 2000::/3 with special purposes: protocol assignments (RFC 2928) and documentation (RFC 3849,
        // RFC 9637).
        [0x2001, 0x0000..=0x01ff, ..] | [0x2001, 0x0db8, ..] | [0x3fff, 0x0000..=0x0fff, ..] => true,
        // The rest is not assigned to the internet: unique local (RFC 4193), site-local, discard, local NAT64, ….
        [0x2000..=0x3fff, ..] => false,
        _ => true,
    }
}

/// The IPv4 address that a router on the way translates this address to.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let bits = address.to_bits();
    let inner = |shift: u32| Some(Ipv4Addr::from_bits((bits >> shift) as u32));
    match address.segments() {
        // NAT64 with a prefix of the local network (RFC 8215), with the usual length.
        [0x0064, 0xff9b, 1, ..] => inner(0),
        // Mapped (RFC 4291), its translated form (RFC 2765), and NAT64 (RFC 6052).
        [0, 0, 0, 0, 0, 0xffff, ..] | [0, 0, 0, 0, 0xffff, 0, ..] | [0x0064, 0xff9b, 0, 0, 0, 0, ..] => inner(0),
        // Compatible (RFC 4291), deprecated; `::` and `::1` are no such addresses.
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => inner(0),
        // 6to4 (RFC 3056).
        [0x2002, ..] => inner(80),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::nat64::Nat64Prefix, *};

    struct Around;

    impl Surroundings for Around {
        fn is_own(&self, address: IpAddr) -> bool {
            ["10.9.0.1", "198.41.0.4", "fd12::1", "2a00::1"].iter().any(|own| *own == address.to_string())
        }

        fn is_address_of(&self, name: &str, address: IpAddr) -> bool {
            (name, address.to_string().as_str()) == ("gitea.corp", "10.3.0.5")
                || (name, address.to_string().as_str()) == ("here.corp", "10.9.0.1")
        }

        fn translations(&self, address: Ipv6Addr) -> Vec<Ipv4Addr> {
            let announced = Nat64Prefix::announced_by("2a64:64::c000:aa".parse().unwrap());
            announced.into_iter().filter_map(|prefix| prefix.translate(address)).collect()
        }
    }

    fn internet(allow: &[&str]) -> NetworkPolicy {
        let allow = allow.iter().map(|text| text.parse().unwrap()).collect();
        NetworkPolicy { mode: NetworkMode::Internet, allow }
    }

    fn check(policy: &NetworkPolicy, to: &str) -> Result<(), NetworkRefusal> {
        policy.check(to.parse().unwrap(), &Around)
    }

    #[test]
    fn the_internet_is_what_is_public() {
        let policy = internet(&[]);
        for public in [
            "1.1.1.1:443",
            "140.82.121.3:22",
            "172.32.0.1:80",
            "[2606:4700::1111]:443",
            "[2003::1]:1",
            "[2a64:64::101:101]:80",
        ] {
            assert_eq!(check(&policy, public), Ok(()), "{public}");
        }
        use NetworkRefusal::*;
        let refused = [
            ("127.0.0.1:22", Loopback),
            ("127.255.0.9:22", Loopback),
            ("0.0.0.0:22", Loopback),
            ("0.1.2.3:22", Loopback),
            ("[::1]:22", Loopback),
            ("[::]:22", Loopback),
            ("[::ffff:127.0.0.1]:22", Loopback),
            ("[::127.0.0.1]:22", Loopback),
            ("[64:ff9b::7f00:1]:22", Loopback),
            ("[2002:7f00:1::]:22", Loopback),
            ("169.254.169.254:80", LinkLocal),
            ("[::ffff:169.254.169.254]:80", LinkLocal),
            ("[64:ff9b::a9fe:a9fe]:80", LinkLocal),
            ("[fe80::1]:80", LinkLocal),
            ("[febf::1]:80", LinkLocal),
            ("[fd00:ec2::254]:80", LinkLocal),
            ("[fd20:ce::254]:80", LinkLocal),
            ("168.63.129.16:80", LinkLocal),
            ("100.100.100.200:80", LinkLocal),
            ("192.0.0.192:80", LinkLocal),
            ("224.0.0.251:5353", NotUnicast),
            ("255.255.255.255:67", NotUnicast),
            ("240.0.0.1:1", NotUnicast),
            ("[ff02::1]:1", NotUnicast),
            ("10.0.0.1:80", Private),
            ("172.16.0.1:80", Private),
            ("172.31.255.255:80", Private),
            ("192.168.1.1:80", Private),
            ("100.64.0.1:80", Private),
            ("198.18.0.1:80", Private),
            ("203.0.113.1:80", Private),
            ("[fd12::2]:80", Private),
            ("[fec0::1]:80", Private),
            ("[::ffff:10.0.0.1]:80", Private),
            ("[64:ff9b::a00:1]:80", Private),
            ("[64:ff9b:1::101:101]:80", Private),
            ("[64:ff9b:1::a00:1]:80", Private),
            ("[64:ff9b:1::7f00:1]:80", Loopback),
            // By the prefix that the network announces.
            ("[2a64:64::7f00:1]:80", Loopback),
            ("[2a64:64::a9fe:a9fe]:80", LinkLocal),
            ("[2a64:64::a00:1]:80", Private),
            ("[2a64:64::c629:4]:80", ThisHost),
            ("[2001:db8::1]:80", Private),
            ("[2001:0:1::1]:80", Private),
            // Addresses of this host, also public ones.
            ("198.41.0.4:80", ThisHost),
            ("10.9.0.1:22", ThisHost),
            ("[2a00::1]:22", ThisHost),
            ("[::ffff:198.41.0.4]:80", ThisHost),
            ("[64:ff9b::c629:4]:80", ThisHost),
            ("[2002:c629:4::]:80", ThisHost),
        ];
        for (to, why) in refused {
            assert_eq!(check(&policy, to), Err(why), "{to}");
        }
    }

    #[test]
    fn the_list_opens_what_it_names() {
        let policy = internet(&["10.1.0.0/16", "10.2.0.7:443", "[fd12::/48]:443", "gitea.corp:3000"]);
        for to in ["10.1.255.1:9", "10.2.0.7:443", "[fd12::2]:443", "10.3.0.5:3000", "[::ffff:10.1.0.1]:9"] {
            assert_eq!(check(&policy, to), Ok(()), "{to}");
        }
        for to in ["10.2.0.7:80", "[fd12::2]:80", "[fd13::2]:443", "10.3.0.5:22", "10.3.0.6:3000"] {
            assert_eq!(check(&policy, to), Err(NetworkRefusal::Private), "{to}");
        }
    }

    #[test]
    fn a_network_does_not_open_this_host() {
        let wide = internet(&["10.0.0.0/8", "0.0.0.0/0", "::/0"]);
        assert_eq!(check(&wide, "10.9.0.2:22"), Ok(()));
        assert_eq!(check(&wide, "10.9.0.1:22"), Err(NetworkRefusal::ThisHost));
        assert_eq!(check(&wide, "127.0.0.1:22"), Err(NetworkRefusal::Loopback));
        assert_eq!(check(&wide, "169.254.169.254:80"), Err(NetworkRefusal::LinkLocal));
        assert_eq!(check(&wide, "[fd00:ec2::254]:80"), Err(NetworkRefusal::LinkLocal));
        for here in ["[64:ff9b:1::a09:1]:22", "[2a64:64::a09:1]:22", "[64:ff9b::a09:1]:22"] {
            assert_eq!(check(&wide, here), Err(NetworkRefusal::ThisHost), "{here}");
        }
        // One address without a port would open every service of this host.
        assert_eq!(check(&internet(&["10.9.0.1"]), "10.9.0.1:22"), Err(NetworkRefusal::ThisHost));
        for allow in ["10.9.0.1:3000", "here.corp:3000"] {
            let one = internet(&[allow]);
            assert_eq!(check(&one, "10.9.0.1:3000"), Ok(()), "{allow}");
            assert_eq!(check(&one, "10.9.0.1:22"), Err(NetworkRefusal::ThisHost), "{allow}");
        }
    }

    /// The examples of RFC 6052, 2.4.
    #[test]
    fn the_other_modes_decide_alone() {
        for to in ["1.1.1.1:443", "127.0.0.1:22", "10.1.0.1:1"] {
            let of = |mode| NetworkPolicy { mode, allow: vec!["10.1.0.0/16".parse().unwrap()] };
            assert_eq!(check(&of(NetworkMode::Isolated), to), Err(NetworkRefusal::Isolated));
            assert_eq!(check(&of(NetworkMode::Host), to), Ok(()));
        }
    }

    #[test]
    fn destinations_are_read_and_written() {
        let same =
            ["10.1.0.0/16", "10.1.2.3/32:443", "[fd12::/48]:443", "fd12::/48", "gitea.example.org:3000", "localname"];
        for text in same {
            assert_eq!(text.parse::<AllowedDestination>().unwrap().to_string(), text);
        }
        for (text, read) in [
            ("10.1.2.3", "10.1.2.3/32"),
            ("10.1.2.3/8:1", "10.0.0.0/8:1"),
            ("[fd12::1]", "fd12::1/128"),
            ("Gitea.Corp", "gitea.corp"),
        ] {
            assert_eq!(text.parse::<AllowedDestination>().unwrap().to_string(), read);
        }
        for text in [
            "",
            "10.1.2",
            "10.1.2.3/33",
            "10.1.2.3:",
            "10.1.2.3:0",
            "10.1.2.3:65536",
            "[fd12::1",
            "a b",
            "-x.org",
            "http://a",
            "a/b",
            "[fd12::1]443",
            "..",
            "a..b",
        ] {
            let error = text.parse::<AllowedDestination>().unwrap_err();
            assert!(error.starts_with("expected an address"), "{text:?}: {error}");
        }
        for text in [
            "127.0.0.0/8",
            "169.254.169.254:80",
            "::1",
            "fe80::/10",
            "224.0.0.0/4",
            "fd00:ec2::254",
            "::ffff:127.0.0.1",
        ] {
            let error = text.parse::<AllowedDestination>().unwrap_err();
            assert!(error.contains("cannot be allowed"), "{text:?}: {error}");
        }
    }
}
