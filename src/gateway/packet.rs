//! IP packets and the Ethernet frames that carry them: parsing to what the gateway needs, and construction.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Packet, Icmpv4Repr,
        Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpProtocol, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr,
        TcpPacket, UdpPacket, UdpRepr,
    },
};

use crate::domain::gateway::{GATEWAY_MAC, MTU};

const HOP_LIMIT: u8 = 64;
const ETHERNET_HEADER: usize = 14;
/// How much of a refused packet an ICMP message returns, in bytes: enough for the port numbers (RFC 792).
const QUOTED: usize = 64;

/// A TCP segment or UDP datagram of the guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// `opens`: the first segment of a connection.
    Tcp {
        opens: bool,
    },
    Udp {
        payload: &'a [u8],
    },
    Echo,
    Other,
}

/// What an IP packet says about itself.
#[derive(Debug, PartialEq, Eq)]
pub struct Parsed<'a> {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub transport: Transport<'a>,
}

/// `None`: malformed, a fragment, or with a wrong checksum.
pub fn parse(packet: &[u8]) -> Option<Parsed<'_>> {
    let checks = ChecksumCapabilities::default();
    match packet.first()? >> 4 {
        4 => {
            let ip = Ipv4Packet::new_checked(packet).ok()?;
            if ip.more_frags() || ip.frag_offset() != 0 || !ip.verify_checksum() {
                return None;
            }
            let repr = Ipv4Repr::parse(&ip, &checks).ok()?;
            transport(repr.src_addr.into(), repr.dst_addr.into(), repr.next_header, ip.payload())
        }
        6 => {
            let ip = Ipv6Packet::new_checked(packet).ok()?;
            let repr = Ipv6Repr::parse(&ip).ok()?;
            transport(repr.src_addr.into(), repr.dst_addr.into(), repr.next_header, ip.payload())
        }
        _ => None,
    }
}

fn transport(source: IpAddr, destination: IpAddr, protocol: IpProtocol, payload: &[u8]) -> Option<Parsed<'_>> {
    let parsed = |from: u16, to: u16, transport| Parsed {
        source: SocketAddr::new(source, from),
        destination: SocketAddr::new(destination, to),
        transport,
    };
    Some(match protocol {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            parsed(tcp.src_port(), tcp.dst_port(), Transport::Tcp { opens: tcp.syn() && !tcp.ack() && !tcp.rst() })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            if !udp.verify_checksum(&source.into(), &destination.into()) {
                return None;
            }
            // As long as the borrow of the packet, not of `udp`.
            let payload = payload.get(8..usize::from(udp.len()))?;
            parsed(udp.src_port(), udp.dst_port(), Transport::Udp { payload })
        }
        IpProtocol::Icmp if payload.first() == Some(&8) => parsed(0, 0, Transport::Echo),
        IpProtocol::Icmpv6 if payload.first() == Some(&128) => parsed(0, 0, Transport::Echo),
        _ => parsed(0, 0, Transport::Other),
    })
}

/// Whether it is a TCP segment that resets its connection.
pub fn is_reset(packet: &[u8]) -> bool {
    let payload = match packet.first().map(|first| first >> 4) {
        Some(4) => {
            Ipv4Packet::new_checked(packet).ok().filter(|ip| ip.next_header() == IpProtocol::Tcp).map(|ip| ip.payload())
        }
        Some(6) => {
            Ipv6Packet::new_checked(packet).ok().filter(|ip| ip.next_header() == IpProtocol::Tcp).map(|ip| ip.payload())
        }
        _ => None,
    };
    payload.and_then(|payload| TcpPacket::new_checked(payload).ok()).is_some_and(|tcp| tcp.rst())
}

/// A UDP datagram. `None`: the addresses are of two families, or it is too large for one packet.
pub fn udp(source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let repr = UdpRepr { src_port: source.port(), dst_port: destination.port() };
    let length = repr.header_len() + payload.len();
    let checks = ChecksumCapabilities::default();
    let mut packet = ip(source.ip(), destination.ip(), IpProtocol::Udp, length, HOP_LIMIT)?;
    let at = packet.len() - length;
    repr.emit(
        &mut UdpPacket::new_unchecked(&mut packet[at..]),
        &source.ip().into(),
        &destination.ip().into(),
        payload.len(),
        |to| to.copy_from_slice(payload),
        &checks,
    );
    Some(packet)
}

/// The answer to an echo request.
pub fn echo_reply(request: &[u8]) -> Option<Vec<u8>> {
    let checks = ChecksumCapabilities::default();
    if request.first()? >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(request).ok()?;
        let icmp = Icmpv4Packet::new_checked(ip.payload()).ok()?;
        let Icmpv4Repr::EchoRequest { ident, seq_no, data } = Icmpv4Repr::parse(&icmp, &checks).ok()? else {
            return None;
        };
        return icmpv4(ip.dst_addr(), ip.src_addr(), &Icmpv4Repr::EchoReply { ident, seq_no, data });
    }
    let ip = Ipv6Packet::new_checked(request).ok()?;
    let icmp = Icmpv6Packet::new_checked(ip.payload()).ok()?;
    let (from, to) = (ip.src_addr(), ip.dst_addr());
    let Icmpv6Repr::EchoRequest { ident, seq_no, data } = Icmpv6Repr::parse(&from, &to, &icmp, &checks).ok()? else {
        return None;
    };
    icmpv6(to, from, &Icmpv6Repr::EchoReply { ident, seq_no, data }, HOP_LIMIT)
}

/// Tells the guest that its packet was not forwarded, so that it need not wait for an answer.
pub fn refusal(packet: &[u8]) -> Option<Vec<u8>> {
    let quoted = &packet[..packet.len().min(QUOTED)];
    if packet.first()? >> 4 == 4 {
        let ip = Ipv4Packet::new_checked(packet).ok()?;
        let header = Ipv4Repr::parse(&ip, &ChecksumCapabilities::ignored()).ok()?;
        let data = quoted.get(usize::from(ip.header_len())..)?;
        let reason = Icmpv4DstUnreachable::CommProhibited;
        return icmpv4(ip.dst_addr(), ip.src_addr(), &Icmpv4Repr::DstUnreachable { reason, header, data });
    }
    let ip = Ipv6Packet::new_checked(packet).ok()?;
    let header = Ipv6Repr::parse(&ip).ok()?;
    let data = quoted.get(header.buffer_len()..)?;
    let reason = Icmpv6DstUnreachable::AdminProhibit;
    icmpv6(ip.dst_addr(), ip.src_addr(), &Icmpv6Repr::DstUnreachable { reason, header, data }, HOP_LIMIT)
}

fn icmpv4(source: Ipv4Addr, destination: Ipv4Addr, message: &Icmpv4Repr<'_>) -> Option<Vec<u8>> {
    let length = message.buffer_len();
    let mut packet = ip(source.into(), destination.into(), IpProtocol::Icmp, length, HOP_LIMIT)?;
    let at = packet.len() - length;
    message.emit(&mut Icmpv4Packet::new_unchecked(&mut packet[at..]), &ChecksumCapabilities::default());
    Some(packet)
}

pub fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, message: &Icmpv6Repr<'_>, hop_limit: u8) -> Option<Vec<u8>> {
    let length = message.buffer_len();
    let mut packet = ip(source.into(), destination.into(), IpProtocol::Icmpv6, length, hop_limit)?;
    let at = packet.len() - length;
    let checks = ChecksumCapabilities::default();
    message.emit(&source, &destination, &mut Icmpv6Packet::new_unchecked(&mut packet[at..]), &checks);
    Some(packet)
}

/// A packet with its header and room for the payload.
fn ip(source: IpAddr, destination: IpAddr, protocol: IpProtocol, payload: usize, hop_limit: u8) -> Option<Vec<u8>> {
    let packet = match (source, destination) {
        (IpAddr::V4(src_addr), IpAddr::V4(dst_addr)) => {
            let header = Ipv4Repr { src_addr, dst_addr, next_header: protocol, payload_len: payload, hop_limit };
            let mut packet = vec![0; header.buffer_len() + payload];
            header.emit(&mut Ipv4Packet::new_unchecked(&mut packet), &ChecksumCapabilities::default());
            packet
        }
        (IpAddr::V6(src_addr), IpAddr::V6(dst_addr)) => {
            let header = Ipv6Repr { src_addr, dst_addr, next_header: protocol, payload_len: payload, hop_limit };
            let mut packet = vec![0; header.buffer_len() + payload];
            header.emit(&mut Ipv6Packet::new_unchecked(&mut packet));
            packet
        }
        _ => return None,
    };
    (packet.len() <= MTU).then_some(packet)
}

/// The frame that carries a packet of the gateway to the guest.
pub fn framed(protocol: EthernetProtocol, to: EthernetAddress, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET_HEADER + payload.len()];
    let mut header = EthernetFrame::new_unchecked(&mut frame);
    header.set_src_addr(EthernetAddress(GATEWAY_MAC));
    header.set_dst_addr(to);
    header.set_ethertype(protocol);
    header.payload_mut().copy_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn datagrams_are_written_and_read() {
        for (from, to) in [("10.0.2.15:1000", "1.1.1.1:53"), ("[fd00::1]:1000", "[2606::1]:53")] {
            let packet = udp(address(from), address(to), b"query").unwrap();
            let parsed = parse(&packet).unwrap();
            assert_eq!((parsed.source, parsed.destination), (address(from), address(to)));
            assert_eq!(parsed.transport, Transport::Udp { payload: b"query" });
            let mut damaged = packet.clone();
            *damaged.last_mut().unwrap() ^= 1;
            assert_eq!(parse(&damaged), None);
            for length in 0..packet.len() {
                assert_eq!(parse(&packet[..length]), None, "{length} bytes");
            }
        }
        assert_eq!(udp(address("10.0.2.15:1"), address("[::1]:1"), b""), None);
        assert!(udp(address("10.0.2.15:1"), address("1.1.1.1:1"), &[0; MTU - 28]).is_some());
        assert_eq!(udp(address("10.0.2.15:1"), address("1.1.1.1:1"), &[0; MTU - 27]), None);
    }

    #[test]
    fn a_refusal_goes_back_and_quotes_the_ports() {
        for (from, to) in [("10.0.2.15:1000", "10.9.9.9:53"), ("[fd00::1]:1000", "[fd12::1]:53")] {
            let packet = udp(address(from), address(to), &[7; 500]).unwrap();
            let refused = refusal(&packet).unwrap();
            let parsed = parse(&refused).unwrap();
            assert_eq!((parsed.source.ip(), parsed.destination.ip()), (address(to).ip(), address(from).ip()));
            assert_eq!(parsed.transport, Transport::Other);
            assert!(refused.windows(4).any(|ports| ports == [3, 232, 0, 53]));
            assert!(refused.len() < 150);
        }
    }

    #[test]
    fn fragments_and_other_versions_are_dropped() {
        let mut packet = udp(address("10.0.2.15:1000"), address("1.1.1.1:53"), b"query").unwrap();
        let mut ip = Ipv4Packet::new_unchecked(&mut packet);
        ip.set_more_frags(true);
        ip.fill_checksum();
        assert_eq!(parse(&packet), None);
        assert_eq!(parse(&[]), None);
        assert_eq!(parse(&[0x55; 60]), None);
    }

    /// Inputs that a fuzz target found worth keeping, through what it calls.
    #[test]
    fn the_fuzzers_corpus() {
        use super::super::{dns_message, neighbors};
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/gateway_packets");
        let (mut files, mut frames) = (0, 0);
        for entry in std::fs::read_dir(corpus).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            files += 1;
            let _ = (dns_message::is_question(&bytes), dns_message::truncated(&bytes), neighbors::dhcp_reply(&bytes));
            let mut read = bytes::BytesMut::from(&bytes[..]);
            while let Ok(Some(frame)) = super::super::link::next_frame(&mut read) {
                let Some(payload) = frame.get(ETHERNET_HEADER..) else { continue };
                let answered = parse(payload).is_some_and(|_| refusal(payload).is_some())
                    || neighbors::discovery(payload).is_some()
                    || neighbors::arp_reply(payload).is_some();
                frames += usize::from(answered);
            }
        }
        assert!(files >= 9 && frames >= 6, "{files} files, {frames} frames");
    }
}
