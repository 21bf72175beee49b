//! Any sequence of TCP segments of a guest, with right checksums, as connections that the gateway accepts, reads and writes: nothing
//! panics or goes round without end, no packet is larger than the guest's network carries, and ended connections are freed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mayfly_fuzz::{
    domain::gateway::{GUEST, MTU},
    gateway::{Connections, packet},
};
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpProtocol, Ipv4Address, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};

const SERVER: Ipv4Address = Ipv4Address::new(1, 1, 1, 1);

struct Guest {
    /// The latest number of the gateway, per port.
    heard: [i32; 4],
}

impl Guest {
    /// A segment described by eight bytes: its flags and port, and where it is relative to what was heard.
    fn segment(&self, description: [u8; 8], payload: &[u8]) -> (u16, bool, Vec<u8>) {
        let [flags, sequence, sequence_high, ack, window, window_high, scale, mss] = description;
        let connection = usize::from(flags >> 6);
        let port = 4000 + connection as u16;
        let control = match flags & 7 {
            0 | 1 => TcpControl::Syn,
            2 => TcpControl::Fin,
            3 => TcpControl::Rst,
            4 => TcpControl::Psh,
            _ => TcpControl::None,
        };
        let opens = control == TcpControl::Syn && flags & 8 == 0;
        let repr = TcpRepr {
            src_port: port,
            dst_port: 80,
            control,
            seq_number: TcpSeqNumber(i32::from(i16::from_be_bytes([sequence_high, sequence]))),
            ack_number: (!opens).then(|| TcpSeqNumber(self.heard[connection].wrapping_add(i32::from(ack as i8)))),
            window_len: u16::from_be_bytes([window_high, window]),
            window_scale: (control == TcpControl::Syn).then_some(scale % 15),
            max_seg_size: (control == TcpControl::Syn).then_some(u16::from(mss) * 8),
            sack_permitted: flags & 16 != 0,
            sack_ranges: [None; 3],
            timestamp: None,
            payload: if control == TcpControl::Syn { &[] } else { payload },
        };
        let header = Ipv4Repr {
            src_addr: GUEST,
            dst_addr: SERVER,
            next_header: IpProtocol::Tcp,
            payload_len: repr.buffer_len(),
            hop_limit: 64,
        };
        let checks = ChecksumCapabilities::default();
        let mut bytes = vec![0; header.buffer_len() + repr.buffer_len()];
        header.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &checks);
        let mut tcp = TcpPacket::new_unchecked(&mut bytes[header.buffer_len()..]);
        repr.emit(&mut tcp, &GUEST.into(), &SERVER.into(), &checks);
        (port, opens, bytes)
    }

    fn hear(&mut self, bytes: &[u8]) {
        assert!(bytes.len() <= MTU);
        assert!(packet::parse(bytes).is_some(), "the gateway sends well-formed packets");
        let ip = Ipv4Packet::new_checked(bytes).unwrap();
        let tcp = TcpPacket::new_checked(ip.payload()).unwrap();
        let end = tcp.seq_number() + tcp.segment_len();
        if let Some(heard) = self.heard.get_mut(usize::from(tcp.dst_port().wrapping_sub(4000))) {
            *heard = end.0;
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let mut connections = Connections::new();
    let mut guest = Guest { heard: [0; 4] };
    for step in input.chunks(9) {
        let Ok(description) = <[u8; 8]>::try_from(&step[..8.min(step.len())]) else { break };
        let payload = vec![7; usize::from(step.get(8).copied().unwrap_or_default()) * 5];
        if description[0] & 7 == 7 {
            // What the host's side does.
            match description[1] % 4 {
                0 => connections.transfer(usize::from(u16::from_be_bytes([description[2], description[3]]))),
                1 => connections.shut_down(),
                2 => connections.drop_one(),
                _ => {}
            }
        } else {
            let (_, opens, segment) = guest.segment(description, &payload);
            match opens {
                true => connections.accept((SERVER, 80).into(), segment),
                false => connections.take(segment),
            }
        }
        for packet in connections.poll() {
            guest.hear(&packet);
        }
    }
    assert!(connections.count() <= 8);
});
