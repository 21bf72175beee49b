//! The host's side: which addresses are its own, which addresses the allowed names have, and its resolvers.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{net::lookup_host, time::Instant};

use crate::{
    domain::network::{AllowedDestination, AllowedHost, Surroundings},
    platform::clock,
};

/// How long the addresses of the allowed names are used before they are looked up again.
const NAMES_AGE: Duration = Duration::from_secs(30);
/// The same after a destination that no name has: it may be a new address of one.
const NAMES_AGE_AFTER_MISS: Duration = Duration::from_secs(2);
/// How long an address stays allowed after the last answer that had it: answers may hold different addresses in turn.
const ADDRESS_AGE: Duration = Duration::from_secs(300);
/// A lookup takes longer only if no resolver answers.
const LOOKUP: Duration = Duration::from_secs(5);
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as the C library uses.
const MOST_RESOLVERS: usize = 3;
/// Any public address: a socket that is connected to it sends nothing.
const SOMEWHERE_V6: &str = "[2001:4860:4860::8888]:53";

pub(super) struct HostNetwork {
    names: Vec<String>,
    /// When each address was last in an answer for the name.
    known: Mutex<HashMap<(String, IpAddr), Instant>>,
    /// When the latest lookup ended. Held during a lookup, so that all who need its result wait for it.
    looked_up: tokio::sync::Mutex<Option<Instant>>,
}

impl HostNetwork {
    pub fn new(allow: &[AllowedDestination]) -> Self {
        let name = |allowed: &AllowedDestination| match &allowed.host {
            AllowedHost::Name(name) => Some(name.clone()),
            AllowedHost::Network(_) => None,
        };
        let names: HashSet<String> = allow.iter().filter_map(name).collect();
        Self { names: names.into_iter().collect(), known: Mutex::default(), looked_up: Default::default() }
    }

    pub fn has_names(&self) -> bool {
        !self.names.is_empty()
    }

    /// Looks the allowed names up again, if the addresses are old. `missed`: no known address was the one that is wanted.
    pub async fn refresh_names(&self, missed: bool) {
        let mut looked_up = self.looked_up.lock().await;
        let age = if missed { NAMES_AGE_AFTER_MISS } else { NAMES_AGE };
        if self.names.is_empty() || looked_up.is_some_and(|at| clock::elapsed(at) < age) {
            return;
        }
        let lookups = self.names.iter().map(|name| async move {
            match tokio::time::timeout(LOOKUP, lookup_host((name.as_str(), 0))).await {
                Ok(Ok(addresses)) => {
                    let now = clock::monotonic();
                    let found = addresses.map(|address| ((name.clone(), address.ip().to_canonical()), now));
                    self.known.lock().extend(found);
                }
                // The former addresses stay in use for a while: a resolver that fails for a moment must not cut a job off.
                Ok(Err(error)) => tracing::debug!(name, %error, "cannot look up an allowed name"),
                Err(_) => tracing::debug!(name, "no resolver answered the lookup of an allowed name"),
            }
        });
        futures_util::future::join_all(lookups).await;
        self.known.lock().retain(|_, seen| clock::elapsed(*seen) < ADDRESS_AGE);
        *looked_up = Some(clock::monotonic());
    }
}

impl Surroundings for HostNetwork {
    fn is_own(&self, address: IpAddr) -> bool {
        match if_addrs::get_if_addrs() {
            Ok(interfaces) => {
                interfaces.iter().any(|interface| interface.ip() == address) || is_routed_to_itself(address)
            }
            // Without the list the question has no answer, and a wrong one would open this host.
            Err(error) => {
                tracing::error!(%error, "cannot list the addresses of this host");
                true
            }
        }
    }

    fn is_address_of(&self, name: &str, address: IpAddr) -> bool {
        let known = self.known.lock();
        known.get(&(name.to_owned(), address)).is_some_and(|seen| clock::elapsed(*seen) < ADDRESS_AGE)
    }
}

/// Whether the kernel would send from the address that it sends to, as it does for local addresses that no interface
/// has. Nothing is sent.
fn is_routed_to_itself(address: IpAddr) -> bool {
    let any: IpAddr = if address.is_ipv4() { [0; 4].into() } else { [0u16; 8].into() };
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// Whether the host has a route to the IPv6 internet.
pub(super) fn has_ipv6() -> bool {
    let connected = UdpSocket::bind("[::]:0").and_then(|socket| socket.connect(SOMEWHERE_V6));
    connected.is_ok()
}

/// The host's resolvers, in their order. Read anew each time, because they change when the host changes networks.
pub(super) async fn resolvers() -> Vec<SocketAddr> {
    let text = tokio::fs::read_to_string(Path::new(RESOLV_CONF)).await.unwrap_or_default();
    parse_resolvers(&text)
}

fn parse_resolvers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        if words.next()? != "nameserver" {
            return None;
        }
        let word = words.next()?;
        // A link-local address has its interface behind a percent sign; the socket address knows it as a number only.
        let address = word.parse::<IpAddr>().ok()?;
        Some(SocketAddr::new(address, 53))
    };
    text.lines().filter_map(address).take(MOST_RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_known() {
        let host = HostNetwork::new(&[]);
        for interface in if_addrs::get_if_addrs().unwrap() {
            assert!(host.is_own(interface.ip()), "{interface:?}");
        }
        assert!(host.is_own("127.0.0.1".parse().unwrap()));
        // Documentation (RFC 5737): no host has it.
        assert!(!host.is_own("192.0.2.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn allowed_names_are_looked_up() {
        let host = HostNetwork::new(&["localhost:3000".parse().unwrap(), "no-such-name.invalid".parse().unwrap()]);
        let loopback = "127.0.0.1".parse().unwrap();
        assert!(!host.is_address_of("localhost", loopback));
        host.refresh_names(false).await;
        assert!(host.is_address_of("localhost", loopback));
        assert!(!host.is_address_of("no-such-name.invalid", loopback));
    }

    #[test]
    fn resolvers_are_read() {
        let text = "# made by hand\nsearch corp\nnameserver 127.0.0.53\nnameserver\t2001:db8::1\noptions edns0\n\
                    nameserver fe80::1%eth0\nnameserver 10.0.0.1 # old\nnameserver 10.0.0.2\n";
        let expected: Vec<SocketAddr> =
            ["127.0.0.53:53", "[2001:db8::1]:53", "10.0.0.1:53"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(parse_resolvers(text), expected);
        assert!(parse_resolvers("").is_empty());
    }
}
