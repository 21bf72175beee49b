//! The network between one guest and its gateway: addresses, and what the gateway is started with.
//!
//! Each guest has a network of its own, so all guests have the same addresses.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::NetworkPolicy;

/// The guest's address, by DHCP.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The guest's default route. In the mode `host` its ports are those of the host's loopback interface.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Answers DNS queries through the host's resolver.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// The guest API.
pub const GUEST_API: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 100);
pub const GUEST_API_PORT: u16 = 80;
/// Length of the network's prefix.
pub const PREFIX: u8 = 24;
/// The IPv6 network (unique local, RFC 4193), whose prefix has 64 bits.
pub const PREFIX_V6: Ipv6Addr = Ipv6Addr::new(0xfd6d, 0x6179, 0x666c, 0x7900, 0, 0, 0, 0);
/// The default route over IPv6 by its link-local address.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// Hardware address of the guest's network card. The network has no other guest, and a guest that is resumed from a
/// snapshot keeps it.
pub const GUEST_MAC: [u8; 6] = [0x52, 0x54, 0x00, 0x12, 0x34, 0x56];
pub const GATEWAY_MAC: [u8; 6] = [0x52, 0x55, 0x0a, 0x00, 0x02, 0x02];
/// Largest IP packet between guest and gateway, in bytes.
pub const MTU: usize = 1500;

/// The limit of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLimit {
    pub path: PathBuf,
    /// Bytes on disk above which the log is cut.
    pub bytes: u64,
    /// Bytes of its beginning and of its end that are kept then.
    pub keep_beginning: u64,
    pub keep_end: u64,
}

/// What the gateway of one guest is started with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewaySpec {
    pub policy: NetworkPolicy,
    /// Socket of the hypervisor: the other end of the guest's network card.
    pub link: PathBuf,
    /// Socket of the guest API.
    pub guest_api: PathBuf,
    /// Socket that the gateway creates: a connection to it is a connection to the guest's SSH port.
    pub ssh: PathBuf,
    /// Logs that the guest can make grow.
    #[serde(default)]
    pub logs: Vec<LogLimit>,
    /// File that the gateway locks while it runs. Its pid is in it when the guest's network is up.
    pub lock: PathBuf,
}
