//! Who sends a request, as far as that is known before the database is read. Limits are shared out by sender, so that
//! one sender cannot use up what others need.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, Ipv6Addr},
    sync::LazyLock,
};

use axum::http::{HeaderMap, header};

use crate::domain::VmId;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// An IPv4 address, or the /64 network of an IPv6 address: a host has at least one such network to itself.
    Address(IpAddr),
    /// The process at the other end of a Unix socket. The gateway of a guest is one, so this tells guests apart.
    Process(i32),
    /// It could not be determined.
    Unknown,
}

impl Peer {
    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::from(address) >> 64 << 64;
                Peer::Address(Ipv6Addr::from(network).into())
            }
            address => Peer::Address(address),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A guest: the request has the valid token of this vm.
    Vm(VmId),
    /// The credentials in the request, not yet verified, as a hash with a key of this process.
    Credentials(u64),
    /// The request has no credentials.
    Peer(Peer),
}

impl Sender {
    /// On the admin API, where verifying a token takes a query.
    pub fn of_caller(headers: &HeaderMap, peer: Peer) -> Self {
        static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        headers.get(header::AUTHORIZATION).map_or(Sender::Peer(peer), |value| Sender::Credentials(KEY.hash_one(value)))
    }

    /// For metrics.
    pub fn kind(self) -> &'static str {
        match self {
            Sender::Vm(_) => "vm",
            Sender::Credentials(_) => "token",
            Sender::Peer(_) => "address",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_ipv6_network_are_one_peer() {
        let peer = |text: &str| Peer::of_address(text.parse().unwrap());
        assert_eq!(peer("2001:db8:1:2::1"), peer("2001:db8:1:2:ffff::9"));
        assert_ne!(peer("2001:db8:1:2::1"), peer("2001:db8:1:3::1"));
        assert_ne!(peer("10.0.0.1"), peer("10.0.0.2"));
        assert_eq!(peer("::ffff:10.0.0.1"), peer("10.0.0.1"));
    }

    #[test]
    fn a_sender_is_known_by_its_credentials_first() {
        let peer = Peer::of_address("10.0.0.1".parse().unwrap());
        let with = |token: &str| HeaderMap::from_iter([(header::AUTHORIZATION, token.parse().unwrap())]);
        let of = |headers: &HeaderMap| Sender::of_caller(headers, peer);
        assert_eq!(of(&with("Bearer a")), of(&with("Bearer a")));
        assert_ne!(of(&with("Bearer a")), of(&with("Bearer b")));
        assert_eq!(of(&HeaderMap::new()), Sender::Peer(peer));
    }
}
