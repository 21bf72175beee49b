//! The gateway of one guest: a process that is the guest's router, DHCP server and resolver, and decides for each
//! connection whether it may leave.
//!
//! The hypervisor passes the guest's Ethernet frames through a socket. TCP connections end in a TCP/IP stack here and are
//! continued by connections of the host; datagrams are sent from sockets of the host. So the guest needs no address of
//! the host's network, the host needs no privileges, no interface and no firewall rule, and the hypervisor starts no
//! programs and opens no connections itself.
//!
//! The gateway owns: the guest's network and everything that the guest costs there (connections, datagram flows, their
//! memory), each with a limit. It refuses what `NetworkPolicy` refuses, decided by address at the moment of the
//! connection, whatever name the guest looked up. It knows nothing of the vm, its token or its job: the guest API checks
//! tokens itself.
//!
//! It ends when the hypervisor closes the link. The service starts another one if it ends earlier; the guest's
//! connections are then reset.

use std::{
    collections::HashSet,
    io::{self, Write as _},
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use parking_lot::Mutex;
use smoltcp::wire::{EthernetAddress, EthernetFrame, EthernetProtocol};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{Instant, sleep, sleep_until},
};

use self::{
    host::HostNetwork,
    neighbors::Discovery,
    packet::{Parsed, Transport},
    stack::Stack,
    tcp::SshSocket,
};
use crate::{
    domain::{
        NetworkMode,
        gateway::{GUEST_MAC, GatewaySpec, MTU, ROUTER_V6},
        network::NetworkRefusal,
    },
    platform::{clock, files},
};

mod dns;
mod dns_message;
mod host;
mod link;
mod log_limits;
mod neighbors;
mod packet;
mod route;
mod stack;
#[cfg(target_os = "linux")]
pub mod tap;
mod tcp;
mod udp;

/// Bytes that are read from the hypervisor at once.
const READ: usize = 64 << 10;
/// Frames that wait for the hypervisor to take them, in bytes. Further ones wait in the stack.
const UNSENT: usize = 128 << 10;
/// Refused destinations that are logged. A guest can try any number.
const LOGGED_REFUSALS: usize = 100;
/// The router is announced again long before its lifetime ends.
const ADVERTISE_EVERY: Duration = Duration::from_secs(1800);
/// The longest wait for the next call of the stack, for which nothing is due.
const IDLE: Duration = Duration::from_secs(3600);
const LEAST_WAIT: Duration = Duration::from_millis(1);

/// Why no gateway runs.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    #[error("another gateway of this guest holds {0}")]
    Running(String),
    #[error("{what}: {cause}")]
    Io { what: String, cause: io::Error },
}

struct Gateway {
    spec: GatewaySpec,
    stack: Arc<Stack>,
    host: HostNetwork,
    connections: tcp::Connections,
    flows: udp::Flows,
    queries: dns::Queries,
    guest_mac: Mutex<EthernetAddress>,
    /// Refused destinations that were logged, and whether the limit of connections was.
    logged: Mutex<(HashSet<SocketAddr>, bool)>,
}

/// Runs the gateway until the hypervisor ends.
pub async fn run(spec: GatewaySpec) -> Result<(), GatewayError> {
    let io = |what: &str, path: &Path| {
        let what = format!("{what} {}", path.display());
        move |cause| GatewayError::Io { what, cause }
    };
    let mut lock = files::take_lock(&spec.lock).map_err(|cause| match cause.kind() {
        io::ErrorKind::WouldBlock => GatewayError::Running(spec.lock.display().to_string()),
        _ => io("cannot lock", &spec.lock)(cause),
    })?;
    let link = UnixStream::connect(&spec.link).await.map_err(io("cannot connect to the hypervisor at", &spec.link))?;
    let ssh = SshSocket::listen(&spec.ssh).map_err(io("cannot listen on", &spec.ssh))?;
    // Says which holder of the lock is ready.
    write!(lock, "{}", std::process::id()).map_err(io("cannot write to", &spec.lock))?;
    let gateway = Gateway::new(spec);
    tracing::info!(mode = %gateway.spec.policy.mode, "the guest's network is up");
    let serving = tokio::spawn(gateway.clone().serve_ssh(ssh));
    let keeping = tokio::spawn(log_limits::keep(gateway.spec.logs.clone()));
    let ended = gateway.exchange(link).await;
    serving.abort();
    keeping.abort();
    match ended {
        // The hypervisor is killed when its guest does not end otherwise.
        Err(cause) if cause.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        ended => ended.map_err(io("the link to the hypervisor failed at", &gateway.spec.link)),
    }
}

impl Gateway {
    fn new(spec: GatewaySpec) -> Arc<Self> {
        Arc::new(Self {
            stack: Stack::new(),
            host: HostNetwork::new(&spec.policy.allow),
            connections: tcp::Connections::default(),
            flows: udp::Flows::default(),
            queries: dns::Queries::default(),
            guest_mac: Mutex::new(EthernetAddress(GUEST_MAC)),
            logged: Mutex::default(),
            spec,
        })
    }

    /// Passes frames between the hypervisor and the stack. Returns when the hypervisor closes the link.
    async fn exchange(self: &Arc<Self>, link: UnixStream) -> io::Result<()> {
        let (mut from, mut to) = link.into_split();
        let (mut read, mut unsent) = (BytesMut::new(), BytesMut::new());
        let mut advertise_at = clock::monotonic() + ADVERTISE_EVERY;
        loop {
            let due = self.drain(&mut unsent);
            read.reserve(READ);
            tokio::select! {
                received = from.read_buf(&mut read) => {
                    if received? == 0 {
                        return Ok(());
                    }
                    while let Some(frame) = link::next_frame(&mut read)? {
                        self.take_frame(&frame, &mut unsent);
                    }
                }
                sent = to.write_buf(&mut unsent), if !unsent.is_empty() => {
                    if sent? == 0 {
                        return Ok(());
                    }
                }
                () = self.stack.changed() => {}
                () = sleep(due) => {}
                () = sleep_until(advertise_at) => {
                    self.advertise();
                    advertise_at = next_advertisement();
                }
            }
        }
    }

    /// Moves packets of the stack to the frames for the guest. Returns how long nothing else is due.
    fn drain(&self, unsent: &mut BytesMut) -> Duration {
        loop {
            let due = self.stack.poll();
            let mut moved = false;
            while unsent.len() < UNSENT
                && let Some(packet) = self.stack.next_packet()
            {
                let protocol = match packet.first().map(|first| first >> 4) {
                    Some(6) => EthernetProtocol::Ipv6,
                    _ => EthernetProtocol::Ipv4,
                };
                self.append(protocol, &packet, unsent);
                moved = true;
            }
            // With room in its queue again the stack may have more.
            if !moved {
                return due.unwrap_or(IDLE).max(LEAST_WAIT);
            }
        }
    }

    fn append(&self, protocol: EthernetProtocol, payload: &[u8], unsent: &mut BytesMut) {
        let guest = *self.guest_mac.lock();
        link::append_frame(unsent, &packet::framed(protocol, guest, payload));
    }

    fn take_frame(self: &Arc<Self>, frame: &[u8], unsent: &mut BytesMut) {
        let Ok(frame) = EthernetFrame::new_checked(frame) else { return };
        if frame.src_addr().is_unicast() {
            *self.guest_mac.lock() = frame.src_addr();
        }
        match frame.ethertype() {
            EthernetProtocol::Arp => {
                // A guest that does not read its answers gets no more.
                if unsent.len() < UNSENT
                    && let Some(reply) = neighbors::arp_reply(frame.payload())
                {
                    self.append(EthernetProtocol::Arp, &reply, unsent);
                }
            }
            EthernetProtocol::Ipv4 | EthernetProtocol::Ipv6 => self.take_packet(frame.payload()),
            EthernetProtocol::Unknown(_) => {}
        }
    }

    fn take_packet(self: &Arc<Self>, packet: &[u8]) {
        // The hypervisor passes larger ones, which a card of this network cannot send.
        if packet.len() > MTU {
            return;
        }
        let Some(Parsed { source, destination, transport }) = packet::parse(packet) else { return };
        let answer = match transport {
            Transport::Tcp { opens: true } => return self.open((source, destination), packet.to_vec()),
            Transport::Tcp { opens: false } => return self.stack.take(packet.to_vec()),
            Transport::Udp { payload } if neighbors::is_for_dhcp(destination) => neighbors::dhcp_reply(payload),
            // Searches for services and neighbours, which the guest's network does not have.
            _ if is_multicast_or_broadcast(destination.ip()) && !matches!(transport, Transport::Other) => None,
            Transport::Udp { payload } if dns::is_resolver(destination) => {
                return self.query((source, destination), payload, packet);
            }
            Transport::Udp { payload } => return self.datagram((source, destination), payload, packet),
            Transport::Echo => match destination.ip() {
                IpAddr::V4(address) if neighbors::is_gateway(address) => packet::echo_reply(packet),
                IpAddr::V6(address) if address == ROUTER_V6 => packet::echo_reply(packet),
                _ => packet::refusal(packet),
            },
            Transport::Other => match neighbors::discovery(packet) {
                Some(Discovery::Answer(answer)) => Some(answer),
                Some(Discovery::RouterSolicited) => return self.advertise(),
                None => None,
            },
        };
        if let Some(answer) = answer {
            self.stack.send(answer);
        }
    }

    /// Announces the IPv6 network, if the guest can reach anything over it.
    fn advertise(&self) {
        if self.spec.policy.mode != NetworkMode::Isolated
            && host::has_ipv6()
            && let Some(advertisement) = neighbors::router_advertisement()
        {
            self.stack.send(advertisement);
        }
    }

    /// Logs a refused destination, once.
    fn note_refusal(&self, destination: SocketAddr, refusal: NetworkRefusal) {
        let (destinations, _) = &mut *self.logged.lock();
        if destinations.len() < LOGGED_REFUSALS && destinations.insert(destination) {
            tracing::info!(%destination, "the guest may not reach this destination: {}", refusal.describe());
        }
    }

    /// Logs, once, that the guest has as many connections as it may have.
    fn note_limit(&self) {
        let (_, limit) = &mut *self.logged.lock();
        if !*limit {
            *limit = true;
            tracing::warn!("the guest has as many connections as it may have; further ones are refused");
        }
    }
}

fn next_advertisement() -> Instant {
    clock::monotonic() + ADVERTISE_EVERY
}

fn is_multicast_or_broadcast(address: IpAddr) -> bool {
    address.is_multicast()
        || matches!(address, IpAddr::V4(address) if address.is_broadcast() || address.octets() == [10, 0, 2, 255])
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::fmt::MakeWriter;

    use super::*;
    use crate::domain::{NetworkPolicy, gateway::GUEST_API};

    impl Gateway {
        /// A gateway without a guest, whose files are in this directory.
        pub(super) fn in_directory(dir: &Path) -> Arc<Self> {
            let file = |name: &str| dir.join(name);
            Self::new(GatewaySpec {
                policy: NetworkPolicy { mode: NetworkMode::Isolated, allow: Vec::new() },
                link: file("link"),
                guest_api: file("api"),
                ssh: file("ssh"),
                logs: Vec::new(),
                lock: file("lock"),
            })
        }
    }

    #[derive(Clone, Default)]
    struct LogText(Arc<Mutex<Vec<u8>>>);

    impl io::Write for LogText {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for LogText {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    /// Whatever a guest does, its gateway writes a bounded log.
    #[tokio::test]
    async fn a_guest_cannot_fill_the_log() {
        let dir = tempfile::tempdir().unwrap();
        let gateway = Gateway::in_directory(dir.path());
        let text = LogText::default();
        let log = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(text.clone()).finish();
        let logging = tracing::subscriber::set_default(log);
        let source: SocketAddr = "10.0.2.15:4000".parse().unwrap();
        for port in 1..=2000 {
            let destination: SocketAddr = (GUEST_API, port).into();
            let packet = packet::udp(source, destination, b"x").unwrap();
            gateway.take_packet(&packet);
            gateway.take_packet(&packet[..packet.len() - 1]);
            let _ = gateway.refused((GUEST_API, port).into(), NetworkRefusal::Isolated);
            gateway.note_limit();
        }
        drop(logging);
        let lines = String::from_utf8(text.0.lock().clone()).unwrap();
        let refusals = lines.lines().filter(|line| line.contains("may not reach this destination")).count();
        assert_eq!((refusals, lines.lines().count()), (LOGGED_REFUSALS, LOGGED_REFUSALS + 1), "{lines}");
    }
}
