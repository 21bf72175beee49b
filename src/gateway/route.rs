//! Where a connection or datagram of the guest goes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{host::HostNetwork, neighbors};
use crate::domain::{
    NetworkMode, NetworkPolicy,
    gateway::{GUEST, GUEST_API, GUEST_API_PORT, PREFIX, PREFIX_V6, RESOLVER, ROUTER},
    network::{AllowedHost, NetworkRefusal},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    GuestApi,
    /// The host's resolvers.
    Resolver,
    /// An address as the host sees it.
    Address(SocketAddr),
    Refused(NetworkRefusal),
}

/// The route. Asks for what the decision needs: how the host's network translates IPv6 addresses, and fresh addresses of the
/// allowed names where they matter, which is where nothing else opens the destination.
pub(super) async fn route(policy: &NetworkPolicy, destination: SocketAddr, host: &HostNetwork) -> Route {
    let address = destination.ip().to_canonical();
    if policy.mode == NetworkMode::Internet && address.is_ipv6() && !is_of_guests_network(address) {
        host.refresh_prefixes().await;
    }
    if host.has_names() {
        let mut without_names = policy.clone();
        without_names.allow.retain(|allowed| matches!(allowed.host, AllowedHost::Network(_)));
        if let Route::Refused(_) = decide(&without_names, destination, host) {
            host.refresh_names(false).await;
            if let Route::Refused(_) = decide(policy, destination, host) {
                host.refresh_names(true).await;
            }
        }
    }
    decide(policy, destination, host)
}

fn decide(policy: &NetworkPolicy, destination: SocketAddr, host: &HostNetwork) -> Route {
    let address = destination.ip();
    if is_of_guests_network(address) {
        return inside(policy.mode, destination);
    }
    match policy.check(destination, host) {
        Ok(()) => Route::Address(destination),
        Err(refusal) => Route::Refused(refusal),
    }
}

/// A destination in the network that the guest shares with its gateway.
fn inside(mode: NetworkMode, destination: SocketAddr) -> Route {
    let IpAddr::V4(address) = destination.ip() else { return Route::Refused(NetworkRefusal::Private) };
    match (address, destination.port()) {
        (GUEST_API, GUEST_API_PORT) => Route::GuestApi,
        (RESOLVER, 53) if mode != NetworkMode::Isolated => Route::Resolver,
        (ROUTER, port) if mode == NetworkMode::Host => Route::Address((Ipv4Addr::LOCALHOST, port).into()),
        _ if mode == NetworkMode::Isolated => Route::Refused(NetworkRefusal::Isolated),
        (address, _) if neighbors::is_gateway(address) => Route::Refused(NetworkRefusal::ThisHost),
        _ => Route::Refused(NetworkRefusal::Private),
    }
}

fn is_of_guests_network(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_bits() >> (32 - PREFIX) == GUEST.to_bits() >> (32 - PREFIX),
        IpAddr::V6(address) => network_of(address) == network_of(PREFIX_V6),
    }
}

fn network_of(address: Ipv6Addr) -> u128 {
    address.to_bits() >> 64
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn routed(mode: NetworkMode, to: &str) -> Route {
        let policy =
            NetworkPolicy { mode, allow: vec!["10.0.0.0/8".parse().unwrap(), "localhost:3000".parse().unwrap()] };
        route(&policy, to.parse().unwrap(), &HostNetwork::new(&policy.allow)).await
    }

    #[tokio::test]
    async fn what_the_network_translates_to_a_private_address_is_refused() {
        let lookup = |name: String| -> futures_util::future::BoxFuture<'static, _> {
            assert_eq!(name, "ipv4only.arpa.");
            Box::pin(async { Ok(vec!["2a64:64::192.0.0.171".parse().unwrap()]) })
        };
        let host = HostNetwork::with_lookup(&[], lookup);
        let policy = NetworkPolicy { mode: NetworkMode::Internet, allow: Vec::new() };
        for (to, expected) in [
            ("[2a64:64::10.88.0.9]:80", Route::Refused(NetworkRefusal::Private)),
            ("[2a64:64::1.1.1.1]:80", Route::Address("[2a64:64::1.1.1.1]:80".parse().unwrap())),
        ] {
            assert_eq!(route(&policy, to.parse().unwrap(), &host).await, expected);
        }
    }

    #[tokio::test]
    async fn each_mode_has_its_routes() {
        use NetworkMode::{Host as HostMode, Internet, Isolated};
        use NetworkRefusal::{Loopback, Private, ThisHost};
        let address = |text: &str| Route::Address(text.parse().unwrap());
        let cases = [
            ("10.0.2.100:80", Route::GuestApi, Route::GuestApi, Route::GuestApi),
            (
                "10.0.2.100:81",
                Route::Refused(NetworkRefusal::Isolated),
                Route::Refused(ThisHost),
                Route::Refused(ThisHost),
            ),
            ("10.0.2.3:53", Route::Refused(NetworkRefusal::Isolated), Route::Resolver, Route::Resolver),
            (
                "10.0.2.2:22",
                Route::Refused(NetworkRefusal::Isolated),
                Route::Refused(ThisHost),
                address("127.0.0.1:22"),
            ),
            // The list holds 10.0.0.0/8, and yet no other guest's network is there.
            (
                "10.0.2.16:22",
                Route::Refused(NetworkRefusal::Isolated),
                Route::Refused(Private),
                Route::Refused(Private),
            ),
            ("10.1.2.3:22", Route::Refused(NetworkRefusal::Isolated), address("10.1.2.3:22"), address("10.1.2.3:22")),
            ("1.1.1.1:443", Route::Refused(NetworkRefusal::Isolated), address("1.1.1.1:443"), address("1.1.1.1:443")),
            (
                "127.0.0.1:22",
                Route::Refused(NetworkRefusal::Isolated),
                Route::Refused(Loopback),
                address("127.0.0.1:22"),
            ),
            // No list opens the loopback interface, by a name neither.
            (
                "127.0.0.1:3000",
                Route::Refused(NetworkRefusal::Isolated),
                Route::Refused(Loopback),
                address("127.0.0.1:3000"),
            ),
            ("[fd6d:6179:666c:7900::9]:1", Route::Refused(Private), Route::Refused(Private), Route::Refused(Private)),
        ];
        for (to, isolated, internet, host) in cases {
            assert_eq!(routed(Isolated, to).await, isolated, "{to} isolated");
            assert_eq!(routed(Internet, to).await, internet, "{to} internet");
            assert_eq!(routed(HostMode, to).await, host, "{to} host");
        }
    }
}
