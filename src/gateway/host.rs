//! The host's side: which addresses are its own, which addresses the allowed names have, how its network translates
//! addresses, and its resolvers.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};

use crate::{
    domain::{
        nat64::Nat64Prefix,
        network::{AllowedDestination, AllowedHost, Surroundings},
    },
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
/// A network with NAT64 announces its prefix in the IPv6 addresses of this name (RFC 7050), which has only IPv4 addresses
/// otherwise.
const IPV4_ONLY: &str = "ipv4only.arpa.";
/// How long the prefixes are used before they are looked up again.
const PREFIXES_AGE: Duration = Duration::from_secs(300);
/// The same after a lookup without an answer, or with the answer that there is no such name.
const PREFIXES_AGE_AFTER_ERROR: Duration = Duration::from_secs(30);
/// A network has one or two.
const MOST_PREFIXES: usize = 16;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// As many as the C library uses.
const MOST_RESOLVERS: usize = 3;
/// Any public address: a socket that is connected to it sends nothing.
const SOMEWHERE_V6: &str = "[2001:4860:4860::8888]:53";

/// Asks the host's resolver for the addresses of a name.
type NameLookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync;

pub(super) struct HostNetwork {
    lookup: Box<NameLookup>,
    names: Vec<String>,
    /// When each address was last in an answer for the name.
    known: Mutex<HashMap<(String, IpAddr), Instant>>,
    /// When the latest lookup ended. Held during a lookup, so that all who need its result wait for it.
    looked_up: tokio::sync::Mutex<Option<Instant>>,
    /// With which the host's network translates IPv6 addresses.
    prefixes: Mutex<Vec<Nat64Prefix>>,
    /// When the prefixes have to be looked up again. Held during a lookup.
    prefixes_due: tokio::sync::Mutex<Option<Instant>>,
}

impl HostNetwork {
    pub fn new(allow: &[AllowedDestination]) -> Self {
        Self::with_lookup(allow, |name| {
            Box::pin(async move { Ok(lookup_host((name, 0)).await?.map(|address| address.ip()).collect()) })
        })
    }

    pub fn with_lookup(
        allow: &[AllowedDestination],
        lookup: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync + 'static,
    ) -> Self {
        let name = |allowed: &AllowedDestination| match &allowed.host {
            AllowedHost::Name(name) => Some(name.clone()),
            AllowedHost::Network(_) => None,
        };
        let names: HashSet<String> = allow.iter().filter_map(name).collect();
        Self {
            lookup: Box::new(lookup),
            names: names.into_iter().collect(),
            known: Mutex::default(),
            looked_up: Default::default(),
            prefixes: Mutex::default(),
            prefixes_due: Default::default(),
        }
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
            match timeout(LOOKUP, (self.lookup)(name.clone())).await {
                Ok(Ok(addresses)) => {
                    let now = clock::monotonic();
                    let found = addresses.into_iter().map(|address| ((name.clone(), address.to_canonical()), now));
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

    /// Looks up with which prefixes the host's network translates IPv6 addresses, if that is not known or old.
    pub async fn refresh_prefixes(&self) {
        let mut due = self.prefixes_due.lock().await;
        if due.is_some_and(|at| clock::monotonic() < at) {
            return;
        }
        let age = match timeout(LOOKUP, (self.lookup)(IPV4_ONLY.to_owned())).await {
            Ok(Ok(addresses)) => {
                let mut found = Vec::new();
                for address in addresses {
                    let IpAddr::V6(address) = address else { continue };
                    for prefix in Nat64Prefix::announced_by(address) {
                        if found.len() < MOST_PREFIXES && !found.contains(&prefix) {
                            found.push(prefix);
                        }
                    }
                }
                *self.prefixes.lock() = found;
                PREFIXES_AGE
            }
            // The former prefixes stay in use.
            Ok(Err(_)) | Err(_) => PREFIXES_AGE_AFTER_ERROR,
        };
        *due = Some(clock::monotonic() + age);
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

    fn translations(&self, address: Ipv6Addr) -> Vec<Ipv4Addr> {
        self.prefixes.lock().iter().filter_map(|prefix| prefix.translate(address)).collect()
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
    use std::sync::Arc;

    use tokio::sync::{Notify, Semaphore};

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

    /// A resolver that answers each question when the test says so, with the same address.
    struct SlowResolver {
        asked: Mutex<Vec<String>>,
        changed: Notify,
        answers: Semaphore,
    }

    fn slow_resolver(
        answer: &'static str,
    ) -> (Arc<SlowResolver>, impl Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>) {
        let resolver =
            Arc::new(SlowResolver { asked: Mutex::default(), changed: Notify::new(), answers: Semaphore::new(0) });
        let of_lookup = resolver.clone();
        let lookup = move |name| -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
            let resolver = of_lookup.clone();
            Box::pin(async move {
                resolver.asked.lock().push(name);
                resolver.changed.notify_one();
                resolver.answers.acquire().await.map_err(io::Error::other)?.forget();
                Ok(vec![answer.parse().unwrap()])
            })
        };
        (resolver, lookup)
    }

    impl SlowResolver {
        async fn asked(&self, count: usize) -> Vec<String> {
            loop {
                let mut asked = self.asked.lock().clone();
                if asked.len() >= count {
                    asked.sort();
                    return asked;
                }
                self.changed.notified().await;
            }
        }
    }

    /// The names are looked up at the same time, and connections that need them at the same time wait for one lookup.
    #[tokio::test]
    async fn many_connections_wait_for_one_lookup_of_each_name() {
        let (resolver, lookup) = slow_resolver("10.3.0.5");
        let allow: Vec<AllowedDestination> = ["a.corp:80".parse().unwrap(), "b.corp:80".parse().unwrap()].into();
        let host = Arc::new(HostNetwork::with_lookup(&allow, lookup));
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let host = host.clone();
                tokio::spawn(async move {
                    host.refresh_names(false).await;
                    host.is_address_of("b.corp", "10.3.0.5".parse().unwrap())
                })
            })
            .collect();
        // Neither has been answered, so both are under way.
        assert_eq!(resolver.asked(2).await, ["a.corp", "b.corp"]);
        resolver.answers.add_permits(2);
        for known in waiting {
            assert!(known.await.unwrap());
        }
        assert_eq!(resolver.asked.lock().len(), 2, "they were looked up again");
    }

    /// A resolver that fails costs no known address until it is old, and is not asked again at once.
    #[tokio::test]
    async fn a_resolver_that_fails_cuts_no_known_address_off() {
        let (resolver, lookup) = slow_resolver("10.3.0.5");
        let host = HostNetwork::with_lookup(&["a.corp:80".parse().unwrap()], lookup);
        let address = "10.3.0.5".parse().unwrap();
        resolver.answers.add_permits(1);
        host.refresh_names(false).await;
        resolver.answers.close();
        *host.looked_up.lock().await = clock::monotonic().checked_sub(NAMES_AGE);
        host.refresh_names(false).await;
        host.refresh_names(true).await;
        assert_eq!(resolver.asked.lock().len(), 2);
        assert!(host.is_address_of("a.corp", address));
        for seen in host.known.lock().values_mut() {
            *seen = seen.checked_sub(ADDRESS_AGE).unwrap();
        }
        assert!(!host.is_address_of("a.corp", address));
    }

    #[tokio::test]
    async fn the_networks_own_translation_is_found_and_renewed() {
        let (resolver, lookup) = slow_resolver("2a64:64::192.0.0.170");
        let host = HostNetwork::with_lookup(&[], lookup);
        let private = "2a64:64::10.0.0.1".parse().unwrap();
        assert!(host.translations(private).is_empty());
        resolver.answers.add_permits(1);
        host.refresh_prefixes().await;
        host.refresh_prefixes().await;
        assert_eq!(resolver.asked.lock().as_slice(), [IPV4_ONLY]);
        assert_eq!(host.translations(private), [Ipv4Addr::new(10, 0, 0, 1)]);
        assert!(host.translations("2a64:65::10.0.0.1".parse().unwrap()).is_empty());
        // Without an answer the known ones stay in use, and the next question is not asked at once.
        resolver.answers.close();
        *host.prefixes_due.lock().await = Some(clock::monotonic());
        host.refresh_prefixes().await;
        host.refresh_prefixes().await;
        assert_eq!((resolver.asked.lock().len(), host.translations(private).len()), (2, 1));
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
