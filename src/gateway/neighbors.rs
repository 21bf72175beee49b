//! What the gateway says about itself and the guest's network: hardware addresses (ARP, neighbor discovery), the guest's
//! address (DHCP), and the IPv6 network (router advertisements).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};

use smoltcp::{
    phy::ChecksumCapabilities,
    time::Duration,
    wire::{
        ArpOperation, ArpPacket, ArpRepr, DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress,
        Icmpv6Packet, Icmpv6Repr, Ipv6Packet, NdiscNeighborFlags, NdiscPrefixInfoFlags, NdiscPrefixInformation,
        NdiscRepr, NdiscRouterFlags,
    },
};

use super::packet;
use crate::domain::gateway::{GATEWAY_MAC, GUEST, GUEST_API, MTU, PREFIX_V6, RESOLVER, ROUTER, ROUTER_V6};

const DHCP_SERVER_PORT: u16 = 67;
const DHCP_CLIENT_PORT: u16 = 68;
/// A guest has its address as long as it lives.
const LEASE_SECONDS: u32 = u32::MAX;
/// DHCP option 26: the MTU of the interface.
const OPTION_MTU: u8 = 26;
/// The longest lifetime of a router (RFC 4861, 6.2.1).
pub const ROUTER_LIFETIME: Duration = Duration::from_secs(9000);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// Neighbor discovery ignores messages that were routed.
const NOT_ROUTED: u8 = 255;

/// Addresses that the gateway itself has.
pub fn is_gateway(address: Ipv4Addr) -> bool {
    [ROUTER, RESOLVER, GUEST_API].contains(&address)
}

/// The ARP packet that answers this one.
pub fn arp_reply(packet: &[u8]) -> Option<Vec<u8>> {
    let request = ArpRepr::parse(&ArpPacket::new_checked(packet).ok()?).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr,
        ..
    } = request
    else {
        return None;
    };
    if !is_gateway(target_protocol_addr) {
        return None;
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut ArpPacket::new_unchecked(&mut bytes));
    Some(bytes)
}

/// Whether a datagram is for the DHCP server. A guest without an address sends it to everybody.
pub fn is_for_dhcp(destination: SocketAddr) -> bool {
    destination.port() == DHCP_SERVER_PORT && [Ipv4Addr::BROADCAST.into(), ROUTER.into()].contains(&destination.ip())
}

/// The packet that answers a message of the guest's DHCP client.
pub fn dhcp_reply(message: &[u8]) -> Option<Vec<u8>> {
    let message = DhcpPacket::new_checked(message).ok()?;
    let request = DhcpRepr::parse(&message).ok()?;
    let wanted = request.requested_ip.unwrap_or(request.client_ip);
    let (message_type, your_ip) = match request.message_type {
        DhcpMessageType::Discover => (DhcpMessageType::Offer, GUEST),
        DhcpMessageType::Request if wanted == GUEST => (DhcpMessageType::Ack, GUEST),
        DhcpMessageType::Request => (DhcpMessageType::Nak, Ipv4Addr::UNSPECIFIED),
        // The client has an address and asks for the rest.
        DhcpMessageType::Inform => (DhcpMessageType::Ack, Ipv4Addr::UNSPECIFIED),
        _ => return None,
    };
    let refused = message_type == DhcpMessageType::Nak;
    let informs = request.message_type == DhcpMessageType::Inform;
    let mtu = (MTU as u16).to_be_bytes();
    let options = [DhcpOption { kind: OPTION_MTU, data: &mtu }];
    let reply = DhcpRepr {
        message_type,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: request.client_ip,
        your_ip,
        server_ip: ROUTER,
        router: (!refused).then_some(ROUTER),
        subnet_mask: (!refused).then_some(Ipv4Addr::new(255, 255, 255, 0)),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(ROUTER),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| [RESOLVER].into_iter().collect()),
        max_size: None,
        lease_duration: (!refused && !informs).then_some(LEASE_SECONDS),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if refused { &[] } else { &options },
    };
    let mut bytes = vec![0; reply.buffer_len()];
    reply.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).ok()?;
    // A client without an address receives only broadcasts reliably; one with an address takes them too.
    let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, DHCP_CLIENT_PORT);
    packet::udp(SocketAddrV4::new(ROUTER, DHCP_SERVER_PORT).into(), to.into(), &bytes)
}

/// A neighbor discovery message of the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Discovery {
    /// The packet that answers it.
    Answer(Vec<u8>),
    /// The guest asks for routers.
    RouterSolicited,
}

pub fn discovery(packet: &[u8]) -> Option<Discovery> {
    let ip = Ipv6Packet::new_checked(packet).ok()?;
    if ip.hop_limit() != NOT_ROUTED {
        return None;
    }
    let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let (from, to) = (ip.src_addr(), ip.dst_addr());
    match Icmpv6Repr::parse(&from, &to, &icmp, &ChecksumCapabilities::default()).ok()? {
        Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { .. }) => Some(Discovery::RouterSolicited),
        // From the unspecified address: the guest checks whether an address is in use.
        Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr, .. })
            if target_addr == ROUTER_V6 && !from.is_unspecified() =>
        {
            let advert = NdiscRepr::NeighborAdvert {
                flags: NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::OVERRIDE,
                target_addr,
                lladdr: Some(EthernetAddress(GATEWAY_MAC).into()),
            };
            packet::icmpv6(ROUTER_V6, from, &Icmpv6Repr::Ndisc(advert), NOT_ROUTED).map(Discovery::Answer)
        }
        _ => None,
    }
}

/// Tells the guest its IPv6 network and that the gateway is its router.
pub fn router_advertisement() -> Option<Vec<u8>> {
    let for_ever = Duration::from_secs(u64::from(u32::MAX));
    let advert = NdiscRepr::RouterAdvert {
        hop_limit: 64,
        flags: NdiscRouterFlags::empty(),
        router_lifetime: ROUTER_LIFETIME,
        reachable_time: Duration::ZERO,
        retrans_time: Duration::ZERO,
        lladdr: Some(EthernetAddress(GATEWAY_MAC).into()),
        mtu: Some(MTU as u32),
        prefix_info: Some(NdiscPrefixInformation {
            prefix_len: 64,
            flags: NdiscPrefixInfoFlags::ADDRCONF,
            valid_lifetime: for_ever,
            preferred_lifetime: for_ever,
            prefix: PREFIX_V6,
        }),
    };
    packet::icmpv6(ROUTER_V6, ALL_NODES, &Icmpv6Repr::Ndisc(advert), NOT_ROUTED)
}

#[cfg(test)]
mod tests {
    use smoltcp::wire::{IpProtocol, Ipv6Repr};

    use super::*;

    fn arp(target: Ipv4Addr, source: Ipv4Addr) -> Vec<u8> {
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress([2, 0, 0, 0, 0, 1]),
            source_protocol_addr: source,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target,
        };
        let mut bytes = vec![0; request.buffer_len()];
        request.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        bytes
    }

    #[test]
    fn only_addresses_of_the_gateway_are_answered() {
        for own in [ROUTER, RESOLVER, GUEST_API] {
            let reply = arp_reply(&arp(own, GUEST)).unwrap();
            let ArpRepr::EthernetIpv4 {
                operation,
                source_hardware_addr,
                source_protocol_addr,
                target_protocol_addr,
                ..
            } = ArpRepr::parse(&ArpPacket::new_checked(&reply[..]).unwrap()).unwrap()
            else {
                panic!("no ARP for IPv4")
            };
            assert_eq!((operation, source_hardware_addr.0), (ArpOperation::Reply, GATEWAY_MAC));
            assert_eq!((source_protocol_addr, target_protocol_addr), (own, GUEST));
            // A reply is not answered.
            assert_eq!(arp_reply(&reply), None);
        }
        // A guest asks for its own address to find out whether it is in use.
        assert_eq!(arp_reply(&arp(GUEST, Ipv4Addr::UNSPECIFIED)), None);
        assert_eq!(arp_reply(&arp(Ipv4Addr::new(10, 0, 2, 16), GUEST)), None);
        assert_eq!(arp_reply(b"rubbish"), None);
    }

    fn dhcp(message_type: DhcpMessageType, requested_ip: Option<Ipv4Addr>, client_ip: Ipv4Addr) -> Vec<u8> {
        let request = DhcpRepr {
            message_type,
            transaction_id: 7,
            secs: 0,
            client_hardware_address: EthernetAddress([2, 0, 0, 0, 0, 1]),
            client_ip,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: false,
            requested_ip,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; request.buffer_len()];
        request.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
        bytes
    }

    /// Type, address and MTU of the answer.
    fn answered(message: &[u8]) -> Option<(DhcpMessageType, Ipv4Addr, Option<Vec<u8>>)> {
        let reply = dhcp_reply(message)?;
        let parsed = packet::parse(&reply).unwrap();
        assert_eq!(parsed.destination, "255.255.255.255:68".parse().unwrap());
        let packet::Transport::Udp { payload } = parsed.transport else { panic!("no datagram") };
        let message = DhcpPacket::new_checked(payload).unwrap();
        let repr = DhcpRepr::parse(&message).unwrap();
        assert_eq!((repr.transaction_id, repr.server_identifier), (7, Some(ROUTER)));
        let mtu = message.options().find(|option| option.kind == OPTION_MTU).map(|option| option.data.to_vec());
        if mtu.is_some() {
            assert_eq!(repr.router, Some(ROUTER));
            assert_eq!(repr.dns_servers.unwrap().to_vec(), [RESOLVER]);
        }
        Some((repr.message_type, repr.your_ip, mtu))
    }

    #[test]
    fn the_guest_gets_its_address() {
        let (mtu, none) = (Some(vec![0x05, 0xdc]), Ipv4Addr::UNSPECIFIED);
        let other = Ipv4Addr::new(192, 168, 1, 5);
        use DhcpMessageType as Message;
        let cases = [
            (dhcp(Message::Discover, Some(other), none), Some((Message::Offer, GUEST, mtu.clone()))),
            (dhcp(Message::Request, Some(GUEST), none), Some((Message::Ack, GUEST, mtu.clone()))),
            // A renewal.
            (dhcp(Message::Request, None, GUEST), Some((Message::Ack, GUEST, mtu.clone()))),
            (dhcp(Message::Request, Some(other), none), Some((Message::Nak, none, None))),
            (dhcp(Message::Inform, None, GUEST), Some((Message::Ack, none, mtu))),
            (dhcp(Message::Release, None, GUEST), None),
        ];
        for (message, expected) in cases {
            assert_eq!(answered(&message), expected);
        }
        assert_eq!(dhcp_reply(b"rubbish"), None);
        assert!(is_for_dhcp("255.255.255.255:67".parse().unwrap()));
        assert!(is_for_dhcp("10.0.2.2:67".parse().unwrap()));
        assert!(!is_for_dhcp("10.0.2.3:67".parse().unwrap()));
    }

    fn solicit(from: Ipv6Addr, target: Ipv6Addr, hop_limit: u8) -> Vec<u8> {
        let message = NdiscRepr::NeighborSolicit { target_addr: target, lladdr: None };
        packet::icmpv6(from, target, &Icmpv6Repr::Ndisc(message), hop_limit).unwrap()
    }

    #[test]
    fn the_router_is_found() {
        let guest: Ipv6Addr = "fe80::15".parse().unwrap();
        let Some(Discovery::Answer(answer)) = discovery(&solicit(guest, ROUTER_V6, NOT_ROUTED)) else {
            panic!("no answer")
        };
        let ip = Ipv6Packet::new_checked(&answer[..]).unwrap();
        assert_eq!(Ipv6Repr::parse(&ip).unwrap().next_header, IpProtocol::Icmpv6);
        assert_eq!((ip.src_addr(), ip.dst_addr(), ip.hop_limit()), (ROUTER_V6, guest, NOT_ROUTED));
        // Routed, a search for a duplicate, another address.
        assert_eq!(discovery(&solicit(guest, ROUTER_V6, 64)), None);
        assert_eq!(discovery(&solicit(Ipv6Addr::UNSPECIFIED, ROUTER_V6, NOT_ROUTED)), None);
        assert_eq!(discovery(&solicit(guest, guest, NOT_ROUTED)), None);
        let asked = Icmpv6Repr::Ndisc(NdiscRepr::RouterSolicit { lladdr: None });
        let asked = packet::icmpv6(guest, "ff02::2".parse().unwrap(), &asked, NOT_ROUTED).unwrap();
        assert_eq!(discovery(&asked), Some(Discovery::RouterSolicited));
        assert!(router_advertisement().is_some());
    }
}
